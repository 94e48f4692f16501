"""A real server on a free port, and what its tests send."""

import base64
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import httpx
import openai
import soundfile
import uvicorn
from fastapi import FastAPI
from PIL import Image

from app import serving
from app.api.config import ServerConfig
from app.api.connections import Connection
from app.engine import Engine
from app.models import Models
from app.server import create
from tests.ears import RATE, noise

Asked = list[dict[str, Any]]
JSON = {"content-type": "application/json"}


@contextmanager
def served(engine: Engine, page: Any = None, **config: Any) -> Iterator[str]:
    """The address of a server over an engine, with these of its settings."""
    with listening(create(engine, ServerConfig(**config), page)) as url:
        yield url


@contextmanager
def page_of(served: Engine | Models, **config: Any) -> Iterator[str]:
    """The address of the page alone."""
    from app.web.page import build

    with listening(serving.create(build(served), served, ServerConfig(**config))) as url:
        yield url


@contextmanager
def listening(app: FastAPI) -> Iterator[str]:
    """The address of an application."""
    settings = uvicorn.Config(app, port=0, http=Connection, log_level="critical", timeout_graceful_shutdown=1)
    server = uvicorn.Server(settings)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


def client_of(url: str, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)


def ask(question: str, *parts: dict[str, Any]) -> Any:
    """Messages for either the client or a body."""
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def png(color: str = "red", size: tuple[int, int] = (40, 40), form: str = "PNG") -> bytes:
    buffer = BytesIO()
    Image.new("RGB", size, color).save(buffer, form)
    return buffer.getvalue()


def wav(seconds: float = 1.0, form: str = "WAV") -> bytes:
    buffer = BytesIO()
    soundfile.write(buffer, noise(seconds).numpy(), RATE, format=form)
    return buffer.getvalue()


def image(data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return image_at(f"data:{kind};base64,{base64.b64encode(data).decode()}")


def image_at(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def audio(data: bytes, form: str = "wav") -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def post(url: str, path: str, body: Any, **headers: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/{path}", json=body, headers=headers, timeout=60)


@contextmanager
def sent(url: str, path: str, body: Any, holds: int | None = None) -> Iterator[socket.socket]:
    """A connection on which a request was sent, and which is closed at the end whatever has come. It `holds` so many
    bytes that were not taken yet, or what the system thinks best."""
    data = json.dumps(body).encode()
    head = (
        f"POST /v1/{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
    )
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.socket() as connection:
        if holds is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, holds)
        connection.settimeout(60)
        connection.connect((host, int(port)))
        connection.sendall(head.encode() + data)
        yield connection


def error_of(response: httpx.Response) -> dict[str, Any]:
    """The error in an answer, which must have OpenAI's shape."""
    body = response.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert isinstance(body["error"]["message"], str)
    found: dict[str, Any] = body["error"]
    return found


def until(condition: Any, what: str, seconds: float = 30) -> None:
    """Wait for what will be true soon; only a test that fails waits in full."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"this never came true: {what}"
        time.sleep(0.01)
