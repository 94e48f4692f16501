"""POST /v1/chat/completions."""

import time
import uuid
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from app.api.errors import Refused
from app.api.media import read_messages
from app.api.schema import ChatBody
from app.api.service import Service, unless_left
from app.api.writing import (
    Choice,
    EventStream,
    Told,
    Writing,
    finish_reason,
    logprob,
    read_by,
    token_text,
    usage,
)
from app.requests import Request, TokenScore
from mm_rwkv7.state import State


def add_chat(app: FastAPI, service: Service) -> None:
    @app.post("/chat/completions")
    async def chat(body: ChatBody, http: HttpRequest) -> Response:
        service.check_model(body.model)
        if body.top_logprobs is not None and not body.logprobs:
            raise Refused(400, "top_logprobs belong to logprobs", "top_logprobs")
        most = body.max_completion_tokens or body.max_tokens
        if body.max_completion_tokens is None and body.max_tokens == 0:
            raise Refused(400, "max_tokens is 0, expected at least 1", "max_tokens")
        body.check(service.config.choices, most, service.config.answer_tokens)
        state = await service.states.get(body.state)
        makers = [_Maker(service, body, most, state, choice) for choice in range(body.n or 1)]
        writing = Writing(service, makers, "messages", own_state=state is not None)
        await unless_left(http, writing.begin(len(makers)))
        answer = _Chat(service, body)
        if body.stream:
            return EventStream(writing, answer.events(writing))
        return JSONResponse(await answer.whole(await unless_left(http, writing.choices())))


class _Maker:
    """Makes the request of one choice, in a reader's thread."""

    def __init__(self, service: Service, body: ChatBody, most: int | None, state: State | None, choice: int) -> None:
        self._service, self._body, self._most, self._state, self._choice = service, body, most, state, choice

    def __call__(self) -> Request:
        body, config = self._body, self._service.config
        return Request(
            read_messages(body.messages, config),
            state=self._state,
            sampling=body.sampling(self._most, self._choice),
            timeout_s=config.answer_s,
            logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        )


class _Chat:
    """One answer to a client, in OpenAI's objects."""

    def __init__(self, service: Service, body: ChatBody) -> None:
        self._service, self._body = service, body
        self._head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": service.model}

    async def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        told = [
            {
                "index": i,
                "message": {"role": "assistant", "content": choice.text, "refusal": None},
                "logprobs": self._logprobs(choice.scores),
                "finish_reason": choice.finish_reason,
                **await self._kept(choice.answer.state),
            }
            for i, choice in enumerate(choices)
        ]
        answers = [choice.answer for choice in choices]
        counts = usage(read_by(answers[0]), answers)
        return {**self._head, "object": "chat.completion", "choices": told, "usage": counts}

    async def events(self, writing: Writing) -> AsyncIterator[dict[str, Any]]:
        answers = []
        begun: set[int] = set()
        async for told in writing:
            if told.choice not in begun:
                begun.add(told.choice)
                yield self._chunk(told.choice, {"role": "assistant", "content": "", "refusal": None})
            if told.text or told.scores:
                yield self._chunk(told.choice, {"content": told.text}, told)
            if told.answer is not None:
                answers.append(told.answer)
                yield self._chunk(told.choice, {}, told, await self._kept(told.answer.state))
        if self._counts:
            yield {**self._chunk(0, {}), "choices": [], "usage": usage(read_by(answers[0]), answers)}

    @property
    def _counts(self) -> bool:
        options = self._body.stream_options
        return options is not None and options.include_usage

    def _chunk(
        self, index: int, delta: dict[str, Any], told: Told | None = None, kept: dict[str, str] | None = None
    ) -> dict[str, Any]:
        end = told.answer if told is not None and not delta else None
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": self._logprobs(told.scores) if told is not None and delta else None,
            "finish_reason": None if end is None else finish_reason(end),
            **(kept or {}),
        }
        counts = {"usage": None} if self._counts else {}
        return {**self._head, "object": "chat.completion.chunk", "choices": [choice], **counts}

    async def _kept(self, state: State) -> dict[str, str]:
        return {"state": (await self._service.states.keep(state)).id} if self._body.keep_state else {}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any] | None:
        if not self._body.logprobs:
            return None
        content = [
            {
                **_token(score.written, score.logprob),
                "top_logprobs": [_token(written, value) for written, value in score.top],
            }
            for score in scores
        ]
        return {"content": content, "refusal": None}


def _token(written: bytes, value: float) -> dict[str, Any]:
    return {"token": token_text(written), "logprob": logprob(value), "bytes": list(written)}
