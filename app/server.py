"""The server: OpenAI's interface under /v1, the page at /, health and figures, in one process over one engine."""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from app.announcement import announce
from app.announcement import models as running
from app.api.chat import add_chat
from app.api.completions import add_completions
from app.api.config import ServerConfig
from app.api.embeddings import add_embeddings
from app.api.errors import ErrorBody, Refused, add_handlers
from app.api.guard import Guard, may_enter, wrong_key
from app.api.hosts import HostCheck
from app.api.service import Service
from app.api.several import Several, front
from app.api.states import add_states
from app.serving import PAGE_USER, listen, mount
from app.upload_folder import own_folder

if TYPE_CHECKING:
    from gradio import Blocks

    from app.engine import Engine
    from app.models import Models

MOST_INSIDE = 256  # requests for each of several models: their own interfaces count more exactly
MORE = 32  # requests inside besides those that the engine takes: they are refused, or ask for no answer


def serve(models: "Models", host: str, port: int, config: ServerConfig) -> None:
    """Serve the interface and the page until interrupted."""
    from app.web.page import build

    with models.served() as served, own_folder():
        app = create(served, config, build(served))
        announce(running(served), host, port, ways(config))
        listen(app, host, port)


def ways(config: ServerConfig, page: bool = True) -> dict[str, str]:
    """What a server with these settings offers: paths, and what is wanted there."""
    from app.tools import SPOKEN

    key = "no key is wanted" if config.api_key is None else "with the API key as bearer token"
    found = {"clients": f"/v1, {key}"}
    if page:
        user = "open to all" if config.page_password is None else f"for the user {PAGE_USER} with the page's password"
        found["page"] = f"/, {user}"
    if config.tools:
        found["tools"] = f"{SPOKEN}/, {key}"
    return found


def create(served: "Engine | Models", config: ServerConfig, page: "Blocks | None" = None) -> FastAPI:
    """The application around an engine or several models, which stay the caller's to close; with a page, that is
    mounted at /."""
    from app.engine import Engine

    app = FastAPI(title="mm-rwkv7", docs_url=None, redoc_url=None, openapi_url=None)
    if isinstance(served, Engine):
        service = Service(served, config)
        _one(app, service)
        if config.tools:
            from app.tools import add_tools

            add_tools(app, served, config, _at_once(service), service.metrics)
    else:
        _several(app, Several(served, config, _interface))
    if page is not None:
        mount(app, page, served, config)
    app.add_middleware(HostCheck, hosts=config.hosts)
    return app


def _one(app: FastAPI, service: Service) -> None:
    app.mount("/v1", _interface(service))

    @app.get("/healthz")
    async def health() -> Response:
        alive = service.engine.alive
        return JSONResponse({"status": "ok" if alive else "failed", "model": service.model}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics(http: HttpRequest) -> Response:
        if not may_enter(dict(http.scope["headers"]), service.config.api_key):
            return wrong_key().response
        return _figures(service)


def _several(app: FastAPI, several: Several) -> None:
    at_once = len(several.models.names) * MOST_INSIDE
    app.mount("/v1", Guard(front(several), several.config, at_once, None))

    @app.get("/healthz")
    async def health() -> Response:
        failed = [name for name, engine in several.models.open.items() if not engine.alive]
        told = {"status": "failed" if failed else "ok", "models": several.models.names, "failed": failed}
        return JSONResponse(told, 503 if failed else 200)

    @app.get("/metrics")
    async def metrics(http: HttpRequest, model: str = several.models.names[0]) -> Response:
        if not may_enter(dict(http.scope["headers"]), several.config.api_key):
            return wrong_key().response
        try:
            service = several.service(model)
        except Refused as error:
            return error.response
        return Response(status_code=204) if service is None else _figures(service)


def _figures(service: Service) -> Response:
    return Response(service.metrics.text, media_type="text/plain; version=0.0.4; charset=utf-8")


def _at_once(service: Service) -> int:
    return service.engine.config.slots + service.engine.config.max_waiting + MORE


def _interface(service: Service) -> FastAPI:
    app = FastAPI(
        title="mm-rwkv7",
        docs_url=None,  # their scripts come from elsewhere
        redoc_url=None,
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    add_handlers(app)
    app.add_middleware(Guard, config=service.config, at_once=_at_once(service), metrics=service.metrics)
    model = {"id": service.model, "object": "model", "created": service.since, "owned_by": "mm-rwkv7"}

    @app.get("/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [model]}

    @app.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, object]:
        service.check_model(name)
        return model

    for add in (add_chat, add_completions, add_embeddings, add_states):
        add(app, service)
    return app
