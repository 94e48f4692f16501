"""Several models behind one interface: each request goes to the one that its `model` names."""

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import QueryParams
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.api.config import ServerConfig
from app.api.errors import Refused, add_handlers, log, refusals
from app.api.kept import KeptStates
from app.api.service import Service
from app.api.structure import is_binary
from app.engine import Engine
from app.models import Models


class Several:
    """The services of models, each made when its model is first used, and made anew over the next engine when the model
    was closed meanwhile; the states that clients keep stay. Used on one event loop."""

    def __init__(self, models: Models, config: ServerConfig, interface: Callable[[Service], FastAPI]) -> None:
        self.models, self.config = models, config
        self.since = int(time.time())
        self._interface = interface
        self._made: dict[str, tuple[Service, FastAPI]] = {}
        self._states: dict[str, KeptStates] = {}
        # Who waits until a model has opened keeps nobody from another one.
        self._doors = {name: ThreadPoolExecutor(1, f"open {name}") for name in models.names}
        models.on_close = self._forget

    @property
    def told(self) -> list[dict[str, object]]:
        """The models as the interface lists them."""
        return [
            {"id": name, "object": "model", "created": self.since, "owned_by": "mm-rwkv7"} for name in self.models.names
        ]

    def check(self, name: str) -> str:
        if name not in self.models.names:
            names = ", ".join(map(repr, self.models.names))
            raise Refused(404, f"there is no model {name[:80]!r}, only {names}", "model", "model_not_found")
        return name

    def service(self, name: str) -> Service | None:
        """The model's service, unless the model was not used yet."""
        made = self._made.get(self.check(name))
        return None if made is None else made[0]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """A request for one of them, whole in its first message, and with the engine in use until it is answered."""
        message = await receive()
        name = self.check(_named(scope, message.get("body", b"")) or self.models.names[0])
        with ExitStack() as using:
            engine = await self._use(name, using)
            await self._app(name, engine)(scope, _first(message, receive), send)

    async def _use(self, name: str, using: ExitStack) -> Engine:
        """Opening takes a while, and goes on when the client leaves meanwhile."""
        opened = ExitStack()
        opening = asyncio.wrap_future(self._doors[name].submit(opened.enter_context, self.models.use(name)))
        try:
            with refusals():
                engine = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(
                lambda done: opened.close() if not done.cancelled() and done.exception() is None else None
            )
            raise
        except Refused as error:
            if error.status == 400:
                log.exception("model %s cannot be opened", name)
                raise Refused(503, "the model cannot be opened; the server's log says why", "model") from error
            raise
        using.push(opened.pop_all())
        return engine

    def _app(self, name: str, engine: Engine) -> ASGIApp:
        if name not in self._made:
            service = Service(engine, self.config)
            service.states = self._states.setdefault(name, service.states)
            self._made[name] = service, self._interface(service)
        return self._made[name][1]

    def _forget(self, name: str) -> None:
        """A model was closed: nothing here holds on to its engine."""
        if made := self._made.pop(name, None):
            made[0].readers.shutdown(wait=False)


def front(several: Several) -> FastAPI:
    """The list of models, and all that one of them answers."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    add_handlers(app)

    @app.get("/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": several.told}

    @app.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, object]:
        return several.told[several.models.names.index(several.check(name))]

    app.mount("", several)
    return app


def _named(scope: Scope, body: bytes) -> str | None:
    """The model of the query, else of the body; whatever else is wrong with that is for the model's own interface."""
    named: Any = QueryParams(scope.get("query_string", b"")).get("model")
    if named is None and not is_binary(dict(scope["headers"])):
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            return None
        named = found.get("model") if isinstance(found, dict) else None
    return named if isinstance(named, str) else None


def _first(message: Message, receive: Receive) -> Receive:
    given = [message]

    async def replayed() -> Message:
        return given.pop() if given else await receive()

    return replayed
