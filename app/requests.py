"""What is asked of the engine, and how its answers come back: from its thread to any other thread or event loop."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import TracebackType

from mm_rwkv7.pipeline import Answer
from mm_rwkv7.processor import Message
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State


@dataclass(frozen=True)
class Request:
    """`messages` for the chat template, or a `text` (or its ids) to continue as it stands; one of the two. They come
    after what `state` has read.

    Without `write` they are only read, and the answer is an empty text with the state after them. `timeout_s` counts
    from the submission. With `logprobs` every piece tells the log-probabilities of its tokens and of so many of the
    likeliest ones in each one's place, before penalties and temperature.
    """

    messages: Sequence[Message] = ()
    text: str | Sequence[int] | None = None
    state: State | None = None
    sampling: Sampling = field(default_factory=Sampling)
    write: bool = True
    timeout_s: float | None = None
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if bool(self.messages) == (self.text is not None):
            raise ValueError("expected either messages or a text, got both or neither")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ValueError(f"timeout_s is {self.timeout_s}, expected more than 0 seconds")
        if self.logprobs is not None and self.logprobs < 0:
            raise ValueError(f"logprobs is {self.logprobs}, expected 0 or more")


@dataclass(frozen=True)
class TokenScore:
    """A token that was written: its bytes, its log-probability, and the likeliest tokens in its place, best first."""

    token: int
    written: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """A piece of the answer's text. It may be empty where there are `scores`: a token need not end a character."""

    text: str
    scores: tuple[TokenScore, ...] = ()


class Busy(Exception):  # noqa: N818 - the field's word
    """The engine has as many requests waiting as it takes; it may have a place after `retry_after_s` seconds."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"too many requests are waiting, try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Cancelled(Exception):  # noqa: N818 - the field's word
    """The request was cancelled, or the engine was closed before it was answered."""


class Expired(TimeoutError):  # noqa: N818 - the field's word
    """The request's time was over before its first token."""


class Ticket:
    """A request on its way. Iterate, or iterate asynchronously, for its `Piece`s and at last its `Answer`; once, and
    from one thread or loop. What went wrong is raised there.

    As a context manager it cancels, when it is left, what has not ended by then. `recalled` tells how many of the
    prompt's tokens were not read because the state after them was known, `written` how many tokens the answer has.
    """

    def __init__(self, nudge: Callable[[], None]) -> None:
        self.stopped = False
        self.cancelled = False
        self.recalled = self.written = 0
        self._nudge = nudge
        self._items: SimpleQueue[Piece | Answer | Exception] = SimpleQueue()
        self._listener: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._answer: Answer | None = None
        self._ended = False

    def stop(self) -> None:
        """Write no more: the answer is what has been written, with the state to go on from."""
        self.stopped = True
        self._nudge()

    def cancel(self) -> None:
        """Forget the request: what it held is free after the turn that the engine is in. Nothing happens to a request
        that has ended; otherwise the iteration ends with `Cancelled`."""
        self.cancelled = True
        self._nudge()

    def __iter__(self) -> Iterator[Piece | Answer]:
        while not self._ended:
            yield self._taken(self._items.get())

    async def __aiter__(self) -> AsyncIterator[Piece | Answer]:
        event = asyncio.Event()
        self._listener = (asyncio.get_running_loop(), event)
        while not self._ended:
            event.clear()
            if self._items.empty():
                await event.wait()
            else:
                yield self._taken(self._items.get_nowait())

    def result(self) -> Answer:
        """The answer, waited for."""
        for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    async def wait(self) -> Answer:
        """The same on an event loop."""
        async for _ in self:
            pass
        assert self._answer is not None
        return self._answer

    def __enter__(self) -> "Ticket":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._ended:
            self.cancel()

    def put(self, item: Piece | Answer | Exception) -> None:
        """From the engine: the next item. `wake` tells those who wait on an event loop."""
        self._items.put(item)

    def _taken(self, item: Piece | Answer | Exception) -> Piece | Answer:
        self._ended = not isinstance(item, Piece)
        if isinstance(item, Exception):
            raise item
        if isinstance(item, Answer):
            self._answer = item
        return item


def wake(tickets: Iterable[Ticket]) -> None:
    """Tell event loops that items have come, each loop once for all of its tickets."""
    events: dict[asyncio.AbstractEventLoop, list[asyncio.Event]] = {}
    for ticket in tickets:
        if ticket._listener is not None:
            loop, event = ticket._listener
            events.setdefault(loop, []).append(event)
    for loop, several in events.items():
        with suppress(RuntimeError):  # the loop was closed: nobody waits
            loop.call_soon_threadsafe(_set_all, several)


def _set_all(events: Iterable[asyncio.Event]) -> None:
    for event in events:
        event.set()
