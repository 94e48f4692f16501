"""Puts the page on an address."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradio import Blocks

    from app.engine import Engine
    from app.models import Models

LARGEST_UPLOAD = 20 << 20  # bytes of a picture or a sound
AT_ONCE = 24  # answers written side by side: each takes one of the page's 40 threads
WAITING = 64


def serve(models: "Models", host: str, port: int) -> None:
    """Serve the page until interrupted."""
    from app.announcement import announce
    from app.announcement import models as running
    from app.web.page import build

    with models.served() as served:
        page = build(served)
        launch(page, served, host, port)
        announce(running(served), host, port, {"page": "/"})
        page.block_thread()


def largest_upload(served: "Engine | Models") -> int:
    """Bytes: a saved conversation holds at least two of the model's states, of several models' the usual one's."""
    from app.models import Models
    from app.state_files import state_bytes

    engine = served.engine(served.names[0]) if isinstance(served, Models) else served
    return max(LARGEST_UPLOAD, 3 * state_bytes(engine.pipeline))


def launch(page: "Blocks", served: "Engine | Models", host: str, port: int) -> None:
    """Start the page's server and return. Nothing is fetched from elsewhere, and nothing sent there."""
    from app.web.look import CSS, theme

    page.queue(max_size=WAITING, default_concurrency_limit=AT_ONCE)
    page.launch(
        server_name=host,
        server_port=port,
        theme=theme(),
        css=CSS,
        share=False,
        ssr_mode=False,
        max_file_size=largest_upload(served),
        run_history=False,
        quiet=True,
        prevent_thread_lock=True,
    )
