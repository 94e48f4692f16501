"""POST /v1/embeddings: a text as what the model's head would read after its last token."""

import asyncio
import base64
from typing import Any

from fastapi import FastAPI
from fastapi import Request as HttpRequest
from torch import Tensor

from app.api.completions import several
from app.api.errors import Refused, refusals
from app.api.schema import EmbeddingBody
from app.api.service import Service, unless_left
from app.prompts import text_ids


def add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/embeddings")
    async def embeddings(body: EmbeddingBody, http: HttpRequest) -> dict[str, Any]:
        service.check_model(body.model)
        width = service.engine.pipeline.model.config.lm.width
        if body.dimensions not in (None, width):
            raise Refused(400, f"dimensions is {body.dimensions}, this model has {width}", "dimensions", "unsupported")
        vectors, read = await unless_left(http, _embedded(service, body))
        data = [
            {"object": "embedding", "index": i, "embedding": _encoded(vector, body.encoding_format)}
            for i, vector in enumerate(vectors)
        ]
        counts = {"prompt_tokens": read, "total_tokens": read}
        return {"object": "list", "data": data, "model": service.model, "usage": counts}


async def _embedded(service: Service, body: EmbeddingBody) -> tuple[list[Tensor], int]:
    with refusals(param="input"):
        texts = several(body.input, service.config.inputs, "input")
        ids = await service.in_reader(lambda: [text_ids(service.engine.pipeline, text) for text in texts])
        async with asyncio.timeout(service.config.answer_s):
            return [await service.reader.embed(found) for found in ids], sum(map(len, ids))


def _encoded(vector: Tensor, form: str) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.numpy().astype("<f4").tobytes()).decode()
    found: list[float] = vector.tolist()
    return found
