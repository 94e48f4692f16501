"""What one visitor says and hears, and the states behind it. Knows nothing of web pages."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from mm_rwkv7.pipeline import Answer, Pipeline, question_about
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State

PAUSE = 0.05  # seconds between two updates: more would only make a browser busy


@dataclass(frozen=True)
class Progress:
    """The answer's text so far; at the end also the `answer`, and how long reading its picture took if it was new."""

    text: str
    answer: Answer | None = None
    read_s: float | None = None


class Conversation:
    """One visitor's questions about one picture, which is read once; a new picture begins anew.

    Every question starts from the state after the picture, or with `follow_up` from the state after the last
    answer. `turns` are the messages so far. One question at a time; `stop` may come from any thread.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.turns: list[dict[str, str]] = []
        self._pipeline = pipeline
        self._picture: str | None = None
        self._opened: State | None = None  # after the picture
        self._last: State | None = None  # after the last answer
        self._stop = threading.Event()
        self._busy = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._busy.locked()

    def ask(
        self, question: str, picture: str | None, sampling: Sampling, follow_up: bool = False
    ) -> Iterator[Progress]:
        """Answer a question about the picture of a path. Closing the iterator ends the writing and forgets it.

        ValueError for a bad picture, an empty question, or while another answer is being written.
        """
        if not question.strip():
            raise ValueError("the question is empty")
        if not self._busy.acquire(blocking=False):
            raise ValueError("an answer is still being written; stop it first")
        try:
            self._stop.clear()
            read_s = self._open(picture)
            state = self._last if follow_up else self._opened
            stream = self._pipeline.stream(question_about(question), sampling, state)
            yield from self._write(stream)
            stream.close()
            answer = stream.answer
            self._last = answer.state
            self.turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer.text},
            ]
            yield Progress(answer.text, answer, read_s)
        finally:
            self._busy.release()

    def stop(self) -> None:
        """End the answer that is being written, if any, after its next token; what was written stays."""
        self._stop.set()

    def _open(self, picture: str | None) -> float | None:
        """Read the picture unless it is the one at hand; the seconds it took."""
        if picture == self._picture:
            return None
        began = time.perf_counter()
        opened = None
        if picture is not None:
            parts = [{"type": "image", "image": picture}]
            opened = self._pipeline.prefill([{"role": "user", "content": parts}])
        self._picture, self._opened, self._last, self.turns = picture, opened, opened, []
        return None if picture is None else time.perf_counter() - began

    def _write(self, pieces: Iterable[str]) -> Iterator[Progress]:
        text, shown = "", 0.0
        for piece in pieces:
            text += piece
            if self._stop.is_set():
                return
            if time.monotonic() - shown >= PAUSE:
                shown = time.monotonic()
                yield Progress(text)


class Visitors:
    """Every visitor's own conversation, by an id. The least recent ones go when there are more than `capacity`,
    and those that have been quiet for `seconds`.

    They stay here, and a page holds no more than the id: a conversation has locks and tensors, which a page would
    copy, and it must be within reach of a Stop that comes while another request is writing.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        capacity: int = 64,
        seconds: float = 1800,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pipeline, self._capacity, self._seconds, self._clock = pipeline, capacity, seconds, clock
        self._known: OrderedDict[str, tuple[Conversation, float]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._known)

    def of(self, visitor: str) -> Conversation:
        """The visitor's conversation, a new one if there is none."""
        with self._lock:
            now = self._clock()
            conversation, _ = self._known.pop(visitor, (None, now))
            self._known[visitor] = conversation or Conversation(self._pipeline), now
            while len(self._known) > self._capacity or self._oldest() < now - self._seconds:
                self._known.popitem(last=False)
            return self._known[visitor][0]

    def forget(self, visitor: str) -> None:
        """End the visitor's conversation."""
        with self._lock:
            conversation, _ = self._known.pop(visitor, (None, 0.0))
        if conversation is not None:
            conversation.stop()

    def _oldest(self) -> float:
        return next(iter(self._known.values()))[1]
