"""Stands before the interface: the key, how many come in at once, how large and how slow a request may be."""

import asyncio
import hmac
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused
from app.api.structure import check_structure, is_binary

if TYPE_CHECKING:
    from app.api.metrics import Metrics


class Left(Exception):  # noqa: N818
    """The client went while it was sending, or takes nothing of what it is sent."""


class Guard:
    """An ASGI middleware. It reads a request's whole body, at most `body_bytes` within `body_s`, before anything else
    looks at it, of at most `at_once` requests, and holds at most `bodies_bytes` of them together. `metrics` is None
    where others count."""

    def __init__(self, app: ASGIApp, config: ServerConfig, at_once: int, metrics: "Metrics | None") -> None:
        self.app, self.config, self.at_once, self.metrics = app, config, at_once, metrics
        self.inside = self.held = 0  # requests, and the bytes of their bodies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = 499  # the client left
        self.inside += 1
        body = _Body(self)

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
            await self._admit(scope, receive, body)
            await self.app(scope, body.replayed(receive), watched)
        except Refused as error:
            await error.response(scope, receive, watched)
        except Left:
            pass
        finally:
            self.inside -= 1
            self.held -= body.size
            route = scope.get("route")
            if self.metrics is not None:
                self.metrics.count(scope.get("root_path", "") + getattr(route, "path", "/..."), status)

    async def _admit(self, scope: Scope, receive: Receive, body: "_Body") -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if not may_enter(headers, self.config.api_key):
            raise wrong_key()
        if self.inside > self.at_once:
            raise busy()
        limit = self.config.body_bytes
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limit:
            raise too_large(limit)
        try:
            async with asyncio.timeout(self.config.body_s):
                await body.read(receive)
        except TimeoutError as error:
            raise too_slow() from error
        if not is_binary(headers):
            check_structure(body.whole, self.config)


def wrong_key() -> Refused:
    return Refused(
        401,
        "no API key, or a wrong one; expected Authorization: Bearer KEY",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def may_enter(headers: dict[bytes, bytes], key: str | None) -> bool:
    """Whether a request brings the key, or needs none."""
    if key is None:
        return True
    scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
    return scheme.lower() == b"bearer" and hmac.compare_digest(given.strip(), key.encode())


def too_large(limit: int) -> Refused:
    return Refused(413, f"the request is larger than {limit} bytes", code="too_large", headers={"Connection": "close"})


def too_slow() -> Refused:
    return Refused(408, "the request came too slowly", code="timeout", headers={"Connection": "close"})


def busy() -> Refused:
    return Refused(429, "too many requests at once", code="busy", headers={"Retry-After": "1"})


class _Body:
    """What a request has sent. It counts for as long as the request is inside: whoever answers it holds it."""

    def __init__(self, guard: Guard) -> None:
        self.size = 0
        self._guard = guard
        self.whole = b""

    async def read(self, receive: Receive) -> None:
        config = self._guard.config
        chunks: list[bytes] = []
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Left
            chunk: bytes = message.get("body", b"")
            self.size += len(chunk)
            self._guard.held += len(chunk)
            if self.size > config.body_bytes:
                raise too_large(config.body_bytes)
            if self._guard.held > config.bodies_bytes:
                raise busy()
            chunks.append(chunk)
            more = message.get("more_body", False)
        self.whole = b"".join(chunks)

    def replayed(self, receive: Receive) -> Receive:
        """Gives it once, and keeps none of it."""
        given: list[dict[str, Any]] = [{"type": "http.request", "body": self.whole, "more_body": False}]
        self.whole = b""

        async def next_message() -> Message:
            return given.pop() if given else await receive()

        return next_message
