"""Stands before the interface: the key, how many come in at once, how large and how slow a request may be."""

import asyncio
import hmac
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused
from app.api.metrics import Metrics


class Left(Exception):  # noqa: N818
    """The client went while it was sending, or takes nothing of what it is sent."""


class Guard:
    """An ASGI middleware. It reads a request's whole body, at most `body_bytes` within `body_s`, before anything else
    looks at it, and of at most `at_once` requests. `metrics` is None where others count."""

    def __init__(self, app: ASGIApp, config: ServerConfig, at_once: int, metrics: Metrics | None) -> None:
        self.app, self.config, self.at_once, self.metrics = app, config, at_once, metrics
        self.inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client left
        self.inside += 1

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            try:
                async with asyncio.timeout(self.config.send_s):
                    await send(message)
            except TimeoutError as error:
                raise Left from error

        try:
            body = await self._admit(scope, receive)
            await self.app(scope, _replay(body, receive), watched)
        except Refused as error:
            await error.response(scope, receive, watched)
        except Left:
            pass
        finally:
            self.inside -= 1
            route = scope.get("route")
            if self.metrics is not None:
                self.metrics.count(scope.get("root_path", "") + getattr(route, "path", "/..."), status)

    async def _admit(self, scope: Scope, receive: Receive) -> bytes:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not may_enter(headers, self.config.api_key):
            raise wrong_key()
        if self.inside > self.at_once:
            raise Refused(429, "too many requests at once", code="busy", headers={"Retry-After": "1"})
        limit = self.config.body_bytes
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limit:
            raise _too_large(limit)
        try:
            async with asyncio.timeout(self.config.body_s):
                return await _body(receive, limit)
        except TimeoutError as error:
            headers_out = {"Connection": "close"}
            raise Refused(408, "the request came too slowly", code="timeout", headers=headers_out) from error


def wrong_key() -> Refused:
    return Refused(401, "wrong API key", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def may_enter(headers: dict[bytes, bytes], key: str | None) -> bool:
    """Whether a request brings the key, or needs none."""
    if key is None:
        return True
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), key.encode())


def _too_large(limit: int) -> Refused:
    return Refused(413, f"the request is larger than {limit} bytes", code="too_large", headers={"Connection": "close"})


async def _body(receive: Receive, limit: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Left
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise _too_large(limit)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _replay(body: bytes, receive: Receive) -> Receive:
    given: list[dict[str, Any]] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return given.pop() if given else await receive()

    return replayed
