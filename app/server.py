"""The server: OpenAI's interface under /v1, the page at /, health and figures, in one process over one engine."""

from typing import TYPE_CHECKING

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from app.api.chat import add_chat
from app.api.config import ServerConfig
from app.api.errors import add_handlers
from app.api.guard import Guard, may_enter, wrong_key
from app.api.service import Service

if TYPE_CHECKING:
    from gradio import Blocks

    from app.engine import Engine

MORE = 32  # requests inside besides those that the engine takes: they are refused, or ask for no answer


def create(engine: "Engine", config: ServerConfig = ServerConfig(), page: "Blocks | None" = None) -> FastAPI:
    """The application around an engine, which stays the caller's to close; with a page, that is mounted at /."""
    service = Service(engine, config)
    app = FastAPI(title="mm-rwkv7", docs_url=None, redoc_url=None, openapi_url=None)
    app.mount("/v1", _interface(service))

    @app.get("/healthz")
    async def health() -> Response:
        alive = engine.alive
        return JSONResponse({"status": "ok" if alive else "failed", "model": service.model}, 200 if alive else 503)

    @app.get("/metrics")
    async def metrics(http: HttpRequest) -> Response:
        if not may_enter(dict(http.scope["headers"]), config.api_key):
            return wrong_key().response
        return Response(service.metrics.text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _interface(service: Service) -> FastAPI:
    app = FastAPI(title="mm-rwkv7", docs_url=None, redoc_url=None)
    add_handlers(app)
    at_once = service.engine.config.slots + service.engine.config.max_waiting + MORE
    app.add_middleware(Guard, config=service.config, at_once=at_once, metrics=service.metrics)
    model = {"id": service.model, "object": "model", "created": service.since, "owned_by": "mm-rwkv7"}

    @app.get("/models")
    async def models() -> dict[str, object]:
        return {"object": "list", "data": [model]}

    @app.get("/models/{name:path}")
    async def one_model(name: str) -> dict[str, object]:
        service.check_model(name)
        return model

    add_chat(app, service)
    return app
