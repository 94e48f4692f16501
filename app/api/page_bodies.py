"""Stands before the page: Gradio reads what it is sent whole, and before it asks who sends it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.errors import Refused
from app.api.guard import too_large

UPLOAD = "/gradio_api/upload"  # asks first, and writes files as they come


class PageBodies:
    """An ASGI middleware: at most `limit` bytes of a request, and `uploads` where files are sent."""

    def __init__(self, app: ASGIApp, limit: int, uploads: int) -> None:
        self._app, self._limit, self._uploads = app, limit, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limit = self._uploads if scope["path"].rstrip("/") == UPLOAD else self._limit
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limit:
            await too_large(limit).response(scope, receive, send)
            return
        size, started = 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise too_large(limit)
            return message

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, counted, watched)
        except Refused as error:
            if not started:
                await error.response(scope, receive, send)
