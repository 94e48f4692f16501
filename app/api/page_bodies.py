"""Stands before the page: Gradio reads what it is sent whole, and before it asks who sends it."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused
from app.api.guard import busy, too_large, too_slow

UPLOAD = "/gradio_api/upload"  # asks first, and writes files as they come


class PageBodies:
    """An ASGI middleware: at most `body_bytes` of a request within `body_s`, and `bodies_bytes` of those together that
    are inside; where files are sent, `uploads` bytes of each alone."""

    def __init__(self, app: ASGIApp, config: ServerConfig, uploads: int) -> None:
        self._app, self._config, self._uploads = app, config, uploads
        self._held = 0  # bytes of the bodies inside

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        uploads = scope["path"].rstrip("/") == UPLOAD
        limit = self._uploads if uploads else self._config.body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limit:
            await too_large(limit).response(scope, receive, send)
            return
        end = None if uploads else asyncio.get_running_loop().time() + self._config.body_s
        size, held, whole, started = 0, 0, False, False
        refused: Refused | None = None

        async def counted() -> Message:
            nonlocal size, held, whole, refused
            if whole:
                return await receive()
            try:
                async with asyncio.timeout_at(end):
                    message = await receive()
            except TimeoutError:
                refused = too_slow()
                raise refused from None
            got = len(message.get("body", b""))
            whole = not message.get("more_body", False)
            size += got
            if not uploads:
                held += got
                self._held += got
            if size > limit:
                refused = too_large(limit)
            elif self._held > self._config.bodies_bytes:
                refused = busy()
            if refused is not None:
                raise refused
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            if refused is not None and not started:
                return  # what the page makes of a body that ends so is another error
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except Refused:
            if refused is None:
                raise
        finally:
            self._held -= held
        if refused is not None and not started:
            await refused.response(scope, receive, send)
