"""Puts the page on an address: alone, or beside the interface."""

import asyncio
import logging
import resource
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from fastapi import FastAPI

from app.api.config import ServerConfig
from app.api.hosts import HostCheck
from app.api.page_bodies import PageBodies
from app.upload_folder import own_folder

if TYPE_CHECKING:
    from gradio import Blocks

    from app.engine import Engine
    from app.models import Models

PAGE_USER = "mm-rwkv7"
LARGEST_UPLOAD = 20 << 20  # bytes of a picture or a sound
AT_ONCE = 24  # answers written side by side: each takes one of the page's 40 threads
WAITING = 64
GRACE_S = 3  # for answers under way when the server ends


def serve(models: "Models", host: str, port: int, config: ServerConfig) -> None:
    """Serve the page until interrupted."""
    from app.announcement import announce
    from app.announcement import models as running
    from app.web.page import build

    with models.served() as served, own_folder():
        app = create(build(served), served, config)
        announce(running(served), host, port, {"page": "/"})
        listen(app, host, port)


def create(page: "Blocks", served: "Engine | Models", config: ServerConfig) -> FastAPI:
    """The application of the page alone."""
    app = FastAPI(title="mm-rwkv7", docs_url=None, redoc_url=None, openapi_url=None)
    mount(app, page, served, config)
    app.add_middleware(HostCheck, hosts=config.hosts)
    return app


def mount(app: FastAPI, page: "Blocks", served: "Engine | Models", config: ServerConfig) -> None:
    """Put the page at / of an application, behind its bounds. Nothing is fetched from elsewhere, and nothing sent
    there."""
    import gradio
    from gradio import processing_utils
    from gradio.utils import get_upload_folder

    from app.web.look import CSS, theme

    uploaded = largest_upload(served)
    page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)
    gradio.mount_gradio_app(
        app,
        page,
        path="/",
        auth=None if config.page_password is None else (PAGE_USER, config.page_password),
        auth_message=f"<b>mm-rwkv7</b>: the user is {PAGE_USER}; who runs this server knows the password.",
        show_error=False,
        max_file_size=uploaded,
        ssr_mode=False,
        run_history=False,
        mcp_server=False,  # its handlers are no tools
        theme=theme(),
        css=CSS,
    )
    processing_utils.async_ssrf_protected_download = _fetch_nothing  # or a file's path may be an address
    page.has_launched = True  # without it, mounted pages open whatever path of the server a visitor names
    app.add_middleware(PageBodies, config=config, folder=Path(get_upload_folder()))


async def _fetch_nothing(url: str, cache_dir: str) -> NoReturn:
    from gradio import Error

    raise Error("files are uploaded here, not fetched from an address", print_exception=False)


def largest_upload(served: "Engine | Models") -> int:
    """Bytes: a saved conversation holds at least two of the model's states, of several models' the usual one's."""
    from app.models import Models
    from app.state_files import state_bytes

    engine = served.engine(served.names[0]) if isinstance(served, Models) else served
    return max(LARGEST_UPLOAD, 3 * state_bytes(engine.pipeline))


def listen(app: FastAPI, host: str, port: int) -> None:
    """Serve an application until interrupted."""
    import uvicorn

    from app.api.connections import Connection

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # every connection is a file
    logging.getLogger("uvicorn.error").addFilter(_is_no_end)
    if threading.current_thread() is threading.main_thread():  # uvicorn ends by the signal that it was sent
        signal.signal(signal.SIGTERM, _end)
    uvicorn.run(
        app,
        host=host,
        port=port,
        http=Connection,
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_S,
    )


def _end(number: int, frame: object) -> NoReturn:
    """So that what was begun is put away, as it is after Ctrl-C."""
    raise SystemExit(128 + number)


def _is_no_end(record: logging.LogRecord) -> bool:
    """False for the traces of what was under way when the server ended."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
