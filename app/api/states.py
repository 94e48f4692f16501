"""/v1/states: what was read, as a value that is kept, forked, taken away as a file and brought back.

OpenAI has no such thing; chats and completions take such a state by the field `state`, and keep the one after their
answer by `keep_state`.
"""

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest

from app.api.errors import refusals
from app.api.media import read_messages
from app.api.schema import StateBody
from app.api.service import Service, unless_left
from app.requests import Request
from app.state_files import dump, load
from mm_rwkv7.pipeline import Answer
from mm_rwkv7.state import State

FILE = "application/octet-stream"


def add_states(app: FastAPI, service: Service) -> None:
    @app.post("/states")
    async def read(body: StateBody, http: HttpRequest) -> dict[str, object]:
        service.check_model(body.model)
        before = await service.states.get(body.state)
        return (await service.states.keep((await unless_left(http, _read(service, body, before))).state)).told

    @app.post("/states/import")
    async def bring(http: HttpRequest) -> dict[str, object]:
        data = await http.body()
        with refusals():
            state = await service.in_reader(lambda: load(data, service.engine.pipeline))
        return (await service.states.keep(state)).told

    @app.get("/states/{name}")
    async def look(name: str) -> dict[str, object]:
        return (await service.states.find(name)).told

    @app.get("/states/{name}/content", response_class=Response, responses={200: {"content": {FILE: {}}}})
    async def take(name: str) -> Response:
        kept = await service.states.find(name)
        headers = {"Content-Disposition": f'attachment; filename="{kept.id}.safetensors"'}
        return Response(await service.in_reader(lambda: dump(kept.state)), media_type=FILE, headers=headers)

    @app.post("/states/{name}/fork")
    async def fork(name: str) -> dict[str, object]:
        return (await service.states.keep((await service.states.find(name)).state)).told

    @app.delete("/states/{name}")
    async def remove(name: str) -> dict[str, object]:
        await service.states.remove(name)
        return {"id": name, "object": "state", "deleted": True}


async def _read(service: Service, body: StateBody, before: State | None) -> Answer:
    def make() -> Request:
        messages = read_messages(body.messages, service.config)
        return Request(messages, state=before, write=False, timeout_s=service.config.answer_s)

    with refusals(before is not None, "messages"), await service.submit(make) as ticket:
        return await ticket.wait()
