"""What every route needs: the engine, the kept states, and the way from a body to a ticket."""

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from fastapi import Request as HttpRequest

from app.api.config import ServerConfig
from app.api.errors import Refused
from app.api.kept import KeptStates, kept_files
from app.api.metrics import Metrics
from app.engine import Engine
from app.models import public_name
from app.reading import Reader
from app.requests import Request, Ticket

Result = TypeVar("Result")


class Service:
    """One server's. Used on its event loop; what takes long goes to `readers`, threads that decode
    media, and texts that need no answer to `reader`."""

    def __init__(self, engine: Engine, config: ServerConfig) -> None:
        self.engine, self.config = engine, config
        self.model = public_name(engine.pipeline.name)
        self.since = int(time.time())
        self.states = KeptStates(config.state_bytes, kept_files(engine, config))
        self.metrics = Metrics(engine)
        self.reader = Reader(engine)
        self.readers = ThreadPoolExecutor(config.readers, "reader")

    def check_model(self, name: str | None) -> None:
        if name is not None and name != self.model:
            raise Refused(404, f"there is no model {name[:80]!r}, this is {self.model!r}", "model", "model_not_found")

    async def submit(self, make: Callable[[], Request]) -> Ticket:
        """Make a request and submit it, both in a reader's thread. Who is cancelled meanwhile leaves no ticket."""
        future = self.readers.submit(lambda: self.engine.submit(make()))
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_cancel)
            raise

    async def in_reader(self, function: Callable[[], Result]) -> Result:
        return await asyncio.wrap_future(self.readers.submit(function))


def _cancel(future: "Future[Ticket]") -> None:
    if not future.cancelled() and future.exception() is None:
        future.result().cancel()


async def unless_left(request: HttpRequest, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is cancelled when the client leaves before it is there."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused(499, "the client left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


async def _left(request: HttpRequest) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
