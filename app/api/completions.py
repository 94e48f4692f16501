"""POST /v1/completions: texts continued as they stand, and scored with `echo`."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from fastapi import FastAPI, Response
from fastapi import Request as HttpRequest
from fastapi.responses import JSONResponse

from app.api.errors import Refused, refusals
from app.api.schema import CompletionBody, Ids
from app.api.service import Service, unless_left
from app.api.writing import Choice, EventStream, Make, Writing, finish_reason, logprob, token_text
from app.prompts import text_ids
from app.requests import Request, TokenScore
from mm_rwkv7.state import State

USUAL_TOKENS = 16  # OpenAI's bound of an answer where none is given


@dataclass
class Prompt:
    """What a choice goes on from: `rest` after `state`, which is all of `ids` unless they were scored."""

    ids: list[int]
    rest: Sequence[int]
    state: State | None
    text: str = ""  # told before the answer, with its scores
    scores: Sequence[TokenScore] = ()


def add_completions(app: FastAPI, service: Service) -> None:
    @app.post("/completions")
    async def complete(body: CompletionBody, http: HttpRequest) -> Response:
        service.check_model(body.model)
        most = USUAL_TOKENS if body.max_tokens is None else body.max_tokens
        body.check(service.config.choices, most, service.config.answer_tokens)
        n = body.n or 1
        if body.best_of not in (None, n):
            raise Refused(400, "best_of is not to be had here", "best_of", "unsupported")
        if not most and not body.echo:
            raise Refused(400, "max_tokens is 0 without echo, so there is nothing to answer", "max_tokens")
        if body.stream and (body.echo or not most):
            raise Refused(400, "echo is not streamed", "stream", "unsupported")
        state = await service.states.get(body.state)
        prompts = await unless_left(http, _prompts(service, body, state))
        completion = _Completion(service, body, prompts)
        if not most:
            return JSONResponse(completion.scored())
        makers = [_maker(service, body, most, prompt, i) for prompt in prompts for i in range(n)]
        writing = Writing(service, makers, "prompt", whole=True, own_state=state is not None)
        await unless_left(http, writing.begin(n))
        if body.stream:
            return EventStream(writing, completion.events(writing))
        return JSONResponse(await completion.whole(await unless_left(http, writing.choices())))


def several(given: str | list[str] | Ids | list[Ids], most: int, param: str) -> list[str | Ids]:
    """The one text or the several that a field holds, as texts or ids."""
    one = isinstance(given, str) or (bool(given) and isinstance(given[0], int))
    found: list[Any] = [given] if one else list(given)
    if not 1 <= len(found) <= most:
        raise Refused(400, f"{param} holds {len(found)} texts, expected 1 to {most}", param)
    return found


async def _prompts(service: Service, body: CompletionBody, state: State | None) -> list[Prompt]:
    pipeline = service.engine.pipeline
    with refusals(state is not None, "prompt"):
        texts = several(body.prompt, service.config.inputs, "prompt")
        if len(texts) * (body.n or 1) > service.config.inputs:
            raise Refused(400, f"{len(texts)} prompts with n {body.n} are more than {service.config.inputs}", "n")
        ids = await service.in_reader(lambda: [text_ids(pipeline, text) for text in texts])
        if not body.echo:
            return [Prompt(found, found, state) for found in ids]
        told = [text if isinstance(text, str) else pipeline.tokenizer.decode(text) for text in texts]
        if body.logprobs is None:
            return [Prompt(found, found, state, text) for found, text in zip(ids, told, strict=True)]
        scores = sum(map(len, ids)) * (1 + body.logprobs)
        if scores > service.config.scores:
            most = service.config.scores
            raise Refused(400, f"the prompts have {scores} log-probabilities, expected at most {most}", "prompt")
        async with asyncio.timeout(service.config.answer_s):
            return [
                await _scored(service, found, text, body.logprobs, state) for found, text in zip(ids, told, strict=True)
            ]


async def _scored(service: Service, ids: list[int], text: str, count: int, state: State | None) -> Prompt:
    """The first token has no score, as with OpenAI: nothing was read before it."""
    first = TokenScore(ids[0], service.engine.pipeline.tokenizer.token_bytes(ids[0]), 0.0)
    if len(ids) == 1:
        return Prompt(ids, ids, state, text, [first])
    scores, after = await service.reader.score(ids, count, state)
    return Prompt(ids, ids[-1:], after, text, [first, *scores])


def _maker(service: Service, body: CompletionBody, most: int, prompt: Prompt, choice: int) -> Make:
    def make() -> Request:
        return Request(
            text=prompt.rest,
            state=prompt.state,
            sampling=body.sampling(most, choice),
            timeout_s=service.config.answer_s,
            logprobs=body.logprobs,
        )

    return make


class _Completion:
    """One answer to a client, in OpenAI's objects."""

    def __init__(self, service: Service, body: CompletionBody, prompts: Sequence[Prompt]) -> None:
        self._service, self._body, self._prompts = service, body, prompts
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model,
        }

    def scored(self) -> dict[str, Any]:
        """The prompts alone, where no token was asked for."""
        n = self._body.n or 1
        choices = [
            self._choice(i * n + k, p.text, p.scores, "length", 1)
            for i, p in enumerate(self._prompts)
            for k in range(n)
        ]
        return {**self._head, "choices": choices, "usage": self._usage(0)}

    async def whole(self, choices: Sequence[Choice]) -> dict[str, Any]:
        told = []
        for i, choice in enumerate(choices):
            prompt = self._prompts[i // (self._body.n or 1)]
            scores = [*prompt.scores, *choice.scores]
            one = self._choice(i, prompt.text + choice.text, scores, choice.finish_reason, len(prompt.scores) and 1)
            told.append({**one, **await self._kept(choice.answer.state)})
        written = sum(choice.answer.usage.completion_tokens for choice in choices)
        return {**self._head, "choices": told, "usage": self._usage(written)}

    async def events(self, writing: Writing) -> AsyncIterator[dict[str, Any]]:
        written = 0
        offsets = [0] * len(writing)
        options = self._body.stream_options
        counts = options is not None and options.include_usage
        more = {"usage": None} if counts else {}
        async for told in writing:
            reason, kept = None, {}
            if told.answer is not None:
                written += told.answer.usage.completion_tokens
                reason, kept = finish_reason(told.answer), await self._kept(told.answer.state)
            choice = self._choice(told.choice, told.text, told.scores, reason, 0, offsets[told.choice])
            offsets[told.choice] += len(told.text)
            yield {**self._head, "choices": [{**choice, **kept}], **more}
        if counts:
            yield {**self._head, "choices": [], "usage": self._usage(written)}

    def _choice(
        self, index: int, text: str, scores: Sequence[TokenScore], reason: str | None, unscored: int, offset: int = 0
    ) -> dict[str, Any]:
        logprobs = None if self._body.logprobs is None else _logprobs(scores, unscored, offset)
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    async def _kept(self, state: State) -> dict[str, str]:
        return {"state": (await self._service.states.keep(state)).id} if self._body.keep_state else {}

    def _usage(self, written: int) -> dict[str, int]:
        read = sum(len(prompt.ids) for prompt in self._prompts)
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _logprobs(scores: Sequence[TokenScore], unscored: int, offset: int) -> dict[str, Any]:
    """In OpenAI's older shape: lists side by side. The first `unscored` tokens have null for a score."""
    lengths = [len(score.written.decode(errors="replace")) for score in scores]
    known = [None] * min(unscored, len(scores))
    return {
        "tokens": [token_text(score.written) for score in scores],
        "token_logprobs": [*known, *(logprob(score.logprob) for score in scores[len(known) :])],
        "top_logprobs": [*known, *(_top(score) for score in scores[len(known) :])],
        "text_offset": [offset + start for start in accumulate(lengths[:-1], initial=0)] if scores else [],
    }


def _top(score: TokenScore) -> dict[str, float]:
    """The likeliest tokens, the best first, and the one that stands there if it is none of them."""
    told: dict[str, float] = {}
    for written, value in (*score.top, (score.written, score.logprob)):
        told.setdefault(token_text(written), logprob(value))  # pieces of characters may have one text
    return told
