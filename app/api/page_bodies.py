"""Stands before the page: Gradio reads what it is sent whole, and before it asks who sends it."""

import asyncio
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused
from app.api.guard import busy, too_large, too_slow
from app.api.structure import check_structure
from app.upload_folder import bytes_lying

PAGE = "/gradio_api"
UPLOAD = f"{PAGE}/upload"  # asks first, and writes files as they come
LOOK_S = 5.0  # the folder of uploads is looked at no more often


class PageBodies:
    """An ASGI middleware: at most `body_bytes` of a request within `body_s`, and `bodies_bytes` of those together that
    are inside; where files are sent, as much as may lie in `folder`, `uploads_bytes` of all. What the interface is sent
    is its own guard's to look into."""

    def __init__(self, app: ASGIApp, config: ServerConfig, folder: Path) -> None:
        self._app, self._config, self._folder = app, config, folder
        self._held = 0  # bytes of the bodies inside
        self._lying = 0  # in the folder when it was last looked at, and those that have come since
        self._looked = -LOOK_S

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        uploads, page = scope["path"].rstrip("/") == UPLOAD, scope["path"].startswith(PAGE)
        limit = self._config.uploads_bytes if uploads else self._config.body_bytes
        length = dict(scope["headers"]).get(b"content-length", b"")
        if length.isdigit() and int(length[:20]) > limit:
            await too_large(limit).response(scope, receive, send)
            return
        end = None if uploads else asyncio.get_running_loop().time() + self._config.body_s
        size, held, whole, started = 0, 0, False, False
        refused: Refused | None = None

        async def counted() -> Message:
            """A piece of an upload as it comes, of whatever else all of it."""
            nonlocal refused
            message = await next_piece()
            if uploads or not page or message["type"] == "http.disconnect":
                return message
            pieces = [message.get("body", b"")]
            while not whole:
                message = await next_piece()
                if message["type"] == "http.disconnect":
                    return message
                pieces.append(message.get("body", b""))
            body = b"".join(pieces)
            try:
                check_structure(body, self._config)
            except Refused as error:
                refused = error
                raise
            return {**message, "body": body}

        async def next_piece() -> Message:
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
            if uploads:
                await self._look()
                self._lying += got
            else:
                held += got
                self._held += got
            if size > limit:
                refused = too_large(limit)
            elif self._held > self._config.bodies_bytes:
                refused = busy()
            elif uploads and self._lying > self._config.uploads_bytes:
                refused = Refused(507, "too much was uploaded here; it goes within two hours", code="full")
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

    async def _look(self) -> None:
        """Only who may send files comes here: it takes a while where many lie."""
        now = asyncio.get_running_loop().time()
        if now - self._looked >= LOOK_S:
            self._looked = now
            self._lying = await asyncio.to_thread(bytes_lying, self._folder)
