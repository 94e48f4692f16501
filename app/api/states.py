"""/v1/states: what was read, as a value that is kept, forked, taken away as a file and brought back.

OpenAI has no such thing; chats and completions take such a state by the field `state`, and keep the one after their
answer by `keep_state`.
"""

import tempfile
from pathlib import Path

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest

from app.api.errors import refusals
from app.api.media import read_messages
from app.api.schema import StateBody
from app.api.service import Service, unless_left
from app.requests import Request
from mm_rwkv7.pipeline import Answer, Pipeline
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import State

FILE = "application/octet-stream"
HEADER = 1 << 20  # bytes of a state file besides its tensors
MOST_TOKENS = 1 << 53


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

    with refusals(before is not None), await service.submit(make) as ticket:
        return await ticket.wait()


def dump(state: State) -> bytes:
    """A state as the bytes of its file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        state.save(path)
        return path.read_bytes()


def load(data: bytes, pipeline: Pipeline) -> State:
    """The state in a file's bytes. ValueError unless it is a whole one of this very model, all of it numbers."""
    like = pipeline.model.lm.initial_state()
    expected = sum(tensor.nbytes for layer in like.layers for tensor in layer)
    if len(data) > 2 * expected + HEADER:  # shifts may have been stored with more digits than the model's
        raise ValueError(f"the file has {len(data)} bytes, and a state of this model takes {expected}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "state")
        path.write_bytes(data)
        try:
            state = State.load(path, pipeline.fingerprint)
        except ValueError as error:
            raise ValueError(str(error).replace(str(path), "the file")) from error
    _check(state, pipeline.model.lm)
    return pipeline.sign(state, state.open_turn)


def _check(state: State, lm: RWKV7) -> None:
    """What `State.load` does not know: this model's sizes, and that every number is one."""
    for i, (layer, expected) in enumerate(zip(state.layers, lm.initial_state().layers, strict=False)):
        for name, tensor, known in zip(layer._fields, layer, expected, strict=True):
            if tensor.shape != known.shape or not tensor.is_floating_point():
                raise ValueError(f"the file's {name} of layer {i} is {tensor.dtype} {tuple(tensor.shape)}")
            if not tensor.isfinite().all():
                raise ValueError(f"the file's {name} of layer {i} holds what is no number")
    lm.check_state(state, 1)
    if not 0 <= state.tokens_seen < MOST_TOKENS:
        raise ValueError("the file says that it has read more tokens than there are")
