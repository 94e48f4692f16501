"""A server without a model: it passes requests on to replicas of one, and asks another where a replica goes.

What a replica answers depends on the request and on kept states alone, and those lie in a folder that all share: an
unfinished answer is run again elsewhere.
"""

import asyncio
import hashlib
import json
import secrets
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused, add_handlers, log
from app.api.guard import Guard
from app.api.hosts import HostCheck
from app.api.service import unless_left
from app.api.structure import is_binary
from app.rerun import END, ENDING, Differs, Gone, Retold

SESSION = "x-session-id"
LONGEST_SESSION = 200  # characters
ATTEMPTS = 5
PAUSE_S = 0.5  # before a request is run again, longer each time, until a replica's end has got about
PATIENCE_S = 10.0  # with a replica that should say how it is
OF_ONE_CONNECTION = {b"authorization", b"connection", b"content-length", b"host", b"transfer-encoding"}
METHODS = ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"]


@dataclass(frozen=True)
class Sent:
    """A request on its way to a replica."""

    method: str
    path: str
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""


# Passes a session's request to a replica -> the ASGI messages of the answer; raises `Gone`, if need be in their midst.
Call = Callable[[Sent, str], AsyncGenerator[Message, None]]


def create(call: Call, config: ServerConfig, at_once: int) -> FastAPI:
    """The application that stands before replicas. It holds the key and the bounds of requests."""
    app = FastAPI(title="mm-rwkv7", docs_url=None, redoc_url=None, openapi_url=None)
    interface = FastAPI(title="mm-rwkv7", docs_url=None, redoc_url=None, openapi_url=None)
    add_handlers(interface)
    interface.add_middleware(Guard, config=config, at_once=at_once, metrics=None)
    app.mount("/v1", interface)

    @interface.api_route("/{path:path}", methods=METHODS)
    async def pass_on(path: str, http: HttpRequest) -> Response:
        headers = tuple((name, value) for name, value in http.scope["headers"] if name not in OF_ONE_CONNECTION)
        given = Sent(http.method, f"/v1/{path}", http.scope["query_string"], headers, await http.body())
        sent, session = await asyncio.to_thread(_prepared, given, http.headers.get(SESSION, ""))
        answer = _Answer(call, sent, session)
        return _Passed(await unless_left(http, answer.begin()), answer)

    @app.get("/healthz")
    async def health() -> Response:
        answer = _Answer(call, Sent("GET", "/healthz"), "")
        try:
            async with asyncio.timeout(PATIENCE_S):
                return Response((await answer.begin()).body, media_type="application/json")
        except (Refused, TimeoutError):
            return JSONResponse({"status": "failed"}, 503)

    app.add_middleware(HostCheck, hosts=config.hosts)
    return app


async def answers(app: ASGIApp, sent: Sent) -> AsyncGenerator[Message, None]:
    """The ASGI messages of an application's answer. Whoever leaves them early has left the application."""
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    given: list[Message] = [{"type": "http.request", "body": sent.body, "more_body": False}]

    async def receive() -> Message:
        if not given:
            await asyncio.Event().wait()  # who leaves cancels the task
        return given.pop()

    async def run() -> None:
        try:
            await app(_scope(sent), receive, messages.put)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            yield message
        await task
    finally:
        task.cancel()


def _scope(sent: Sent) -> dict[str, Any]:
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": sent.method,
        "scheme": "http",
        "path": sent.path,
        "raw_path": sent.path.encode(),
        "query_string": sent.query,
        "root_path": "",
        "headers": [(b"host", b"localhost"), *sent.headers],
        "client": None,
        "server": None,
    }


def _prepared(sent: Sent, session: str) -> tuple[Sent, str]:
    """The request and what its session goes by: the header, the state that it goes on from, or how its conversation
    begins. A stream that samples gets a seed, so that a second run is the same."""
    try:
        body = json.loads(sent.body) if sent.method == "POST" and not is_binary(dict(sent.headers)) else None
    except (ValueError, RecursionError):  # for the replica to refuse
        body = None
    if not isinstance(body, dict):
        return sent, session or sent.path
    if body.get("stream") is True and body.get("temperature") and body.get("seed") is None:
        sent = replace(sent, body=json.dumps({**body, "seed": secrets.randbelow(1 << 31)}).encode())
    return sent, (session or _session(body))[:LONGEST_SESSION]


def _session(body: dict[str, Any]) -> str:
    if isinstance(state := body.get("state"), str):
        return state
    messages = body.get("messages")
    if not isinstance(messages, list):
        return ""
    users = (i for i, message in enumerate(messages) if isinstance(message, dict) and message.get("role") == "user")
    beginning = messages[: next(users, 0) + 1]
    return hashlib.blake2b(json.dumps(beginning).encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class _Start:
    """What is known before anything is told: the status and headers; the body where that is no stream."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | None

    @property
    def failed(self) -> bool:
        """Whether this is a replica's end, and says nothing of the request."""
        if self.status != 503 or self.body is None:
            return False
        try:
            return json.loads(self.body)["error"]["code"] in ENDING
        except (ValueError, KeyError, TypeError):
            return False


class _Answer:
    """What a client is told of one request, in as many runs as it takes."""

    def __init__(self, call: Call, sent: Sent, session: str) -> None:
        self._call, self._sent, self._session = call, sent, session
        self._retold = Retold()
        self._run: AsyncGenerator[_Start | bytes, None] | None = None

    async def begin(self) -> _Start:
        """Of the first run that comes to something. `Refused` where none does."""
        for attempt in range(ATTEMPTS):
            await asyncio.sleep(attempt * PAUSE_S)
            self._run = self._once()
            try:
                start = await anext(self._run)
                assert isinstance(start, _Start)
                return start
            except Gone as error:
                log.warning("a replica went: %s", error)
        raise Refused(503, "no replica could answer; try again later", code="unavailable")

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The rest of a stream, to its end or to an event that says why there is none."""
        try:
            while True:
                assert self._run is not None
                try:
                    async for piece in self._run:
                        assert isinstance(piece, bytes)
                        yield piece
                    return
                except Gone as error:
                    log.warning("a replica went in mid-answer: %s", error)
                if (await self.begin()).body is not None:
                    raise Differs("the second run is refused")
        except (Differs, Refused) as error:
            log.warning("an answer cannot be resumed: %s", error)
            refused = Refused(503, "the answer broke off; ask again", code="interrupted")
            yield b"data: " + json.dumps(refused.body).encode() + END

    async def close(self) -> None:
        if self._run is not None:
            await self._run.aclose()

    async def _once(self) -> AsyncGenerator[_Start | bytes, None]:
        """A start, then what is new in this run."""
        self._retold.begin()
        async with aclosing(self._call(self._sent, self._session)) as messages:
            first = await anext(messages)
            headers = [(name, value) for name, value in first["headers"]]
            streamed = dict(headers).get(b"content-type", b"").startswith(b"text/event-stream")
            body = [] if streamed else [message.get("body", b"") async for message in messages]
            start = _Start(first["status"], headers, None if streamed else b"".join(body))
            if start.failed:
                raise Gone("it ends")
            yield start
            async for message in messages:
                if new := self._retold.feed(message.get("body", b"")):
                    yield new


class _Passed(StreamingResponse):
    """An answer as it comes. Whatever ends it, the client's leaving too, ends the run."""

    def __init__(self, start: _Start, answer: _Answer) -> None:
        super().__init__(answer.pieces() if start.body is None else _whole(start.body), start.status)
        self.raw_headers = start.headers
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._answer.close()


async def _whole(body: bytes) -> AsyncGenerator[bytes, None]:
    yield body
