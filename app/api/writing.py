"""Answers on their way from the engine to a client: several side by side, whole or as a stream of events."""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.api.errors import Refused, refusals
from app.api.service import Service
from app.requests import Busy, Request, Ticket, TokenScore
from mm_rwkv7.pipeline import Answer

LEAST_LOGPROB = -9999.0  # JSON has no infinity

Make = Callable[[], Request]


@dataclass(frozen=True)
class Told:
    """What has become certain of the answer number `choice`: a piece of text, the scores of its tokens, the end."""

    choice: int
    text: str
    scores: Sequence[TokenScore] = ()
    answer: Answer | None = None


@dataclass
class Choice:
    """A whole answer."""

    text: str
    answer: Answer
    scores: list[TokenScore] = field(default_factory=list)

    @property
    def finish_reason(self) -> str:
        return finish_reason(self.answer)


def finish_reason(answer: Answer) -> str:
    """OpenAI's word: every end but a stop is for want of tokens or of time."""
    return "stop" if answer.finish_reason == "stop" else "length"


class Writing:
    """The answers to requests, each given as something that makes it; iterate for what is `Told`.

    `begin` waits for the first token, so that whatever is wrong can still be said with a status. No more than the
    engine works on at once are submitted at a time. `param` is the field that they are made of. With `whole` the scores
    of all tokens are told, otherwise those that wrote the text: not an end that was cut off.
    """

    def __init__(
        self, service: Service, makers: Sequence[Make], param: str, whole: bool = False, own_state: bool = False
    ) -> None:
        self._service, self._makers, self._param = service, makers, param
        self._whole, self._own_state = whole, own_state
        self._most = service.engine.config.slots
        self._waiting: deque[int] = deque()  # choices that were not submitted yet
        self._tickets: dict[int, Ticket] = {}  # of those that have not ended
        self._queue: asyncio.Queue[Told | Exception] = asyncio.Queue()
        self._tasks: list[asyncio.Task[None]] = []
        self._first: Told | None = None

    def __len__(self) -> int:
        return len(self._makers)

    async def begin(self, repeats: int = 1) -> None:
        """`repeats`: how many neighbouring makers ask about the same prompt. Those after the first are submitted when
        something is written, and find the prompt read."""
        places = range(len(self._makers))
        try:
            with refusals(self._own_state, self._param):
                self._waiting.extend(i for i in places if i % repeats == 0)
                await self._submit()
                self._first = await self._next()
                self._waiting.extend(i for i in places if i % repeats)
                await self._submit()
        except BaseException:
            self.cancel()
            raise

    async def _submit(self) -> None:
        """As many as there is room for. `Busy` only where none has been taken."""
        while self._waiting and len(self._tickets) < self._most:
            choice = self._waiting[0]
            try:
                ticket = await self._service.submit(self._makers[choice])
            except Busy:
                if not self._tasks:
                    raise
                if self._tickets:
                    return  # when one of them ends
                await asyncio.sleep(1)
                continue
            self._waiting.popleft()
            self._tickets[choice] = ticket
            self._tasks.append(asyncio.create_task(self._pump(choice, ticket)))

    async def _pump(self, choice: int, ticket: Ticket) -> None:
        waiting: list[TokenScore] = []  # of tokens that have written nothing yet
        try:
            async for item in ticket:
                if isinstance(item, Answer):
                    left = waiting if self._whole or item.finish_reason != "stop" else []
                    self._service.metrics.answered(item)
                    self._queue.put_nowait(Told(choice, "", left, item))
                    continue
                waiting += item.scores
                if item.text:
                    self._queue.put_nowait(Told(choice, item.text, waiting))
                    waiting = []
        except Exception as error:  # noqa: BLE001 - it is raised where the answers are awaited
            self._queue.put_nowait(error)

    async def _next(self) -> Told:
        item = await self._queue.get()
        if isinstance(item, Exception):
            raise item
        return item

    async def __aiter__(self) -> AsyncIterator[Told]:
        left = len(self._makers)
        with refusals(self._own_state, self._param):
            while left:
                told, self._first = self._first or await self._next(), None
                if told.answer is not None:
                    left -= 1
                    self._tickets.pop(told.choice)
                    await self._submit()
                yield told

    async def choices(self) -> list[Choice]:
        """All the answers, whole."""
        texts = [""] * len(self._makers)
        scores: list[list[TokenScore]] = [[] for _ in self._makers]
        answers: dict[int, Answer] = {}
        try:
            async for told in self:
                texts[told.choice] += told.text
                scores[told.choice] += told.scores
                if told.answer is not None:
                    answers[told.choice] = told.answer
        finally:
            self.cancel()
        return [Choice(text, answers[i], several) for i, (text, several) in enumerate(zip(texts, scores, strict=True))]

    def cancel(self) -> None:
        """Leave whatever has not ended."""
        for ticket in self._tickets.values():
            ticket.cancel()
        for task in self._tasks:
            task.cancel()


class EventStream(StreamingResponse):
    """Server-sent events. Whatever ends it, the client's leaving too, cancels what is still being written."""

    def __init__(self, writing: Writing, events: AsyncIterator[Mapping[str, Any]]) -> None:
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(_encoded(events), media_type="text/event-stream", headers=headers)
        self._writing = writing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._writing.cancel()


async def _encoded(events: AsyncIterator[Mapping[str, Any]]) -> AsyncIterator[str]:
    try:
        async for event in events:
            yield _event(event)
    except Refused as error:
        yield _event(error.body)
        return
    yield "data: [DONE]\n\n"


def _event(data: Mapping[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"


def usage(prompt_tokens: int, answers: Sequence[Answer]) -> dict[str, int]:
    """As OpenAI counts: a prompt once, however many answers it has."""
    written = sum(answer.usage.completion_tokens for answer in answers)
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": written,
        "total_tokens": prompt_tokens + written,
    }


def read_by(answer: Answer) -> int:
    """Tokens of an answer's prompt, pictures and sounds included."""
    return answer.usage.prompt_tokens + answer.usage.media_tokens


def token_text(written: bytes) -> str:
    """A token as text; one that is no whole characters as OpenAI shows it, bytes:\\xe2\\x82."""
    try:
        return written.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in written)


def logprob(value: float) -> float:
    return max(value, LEAST_LOGPROB)
