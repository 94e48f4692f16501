"""What one visitor says and hears, and the states behind it. Knows nothing of web pages."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import takewhile
from operator import eq

from app.heard import HeardSounds
from mm_rwkv7.pipeline import Answer, Pipeline, question_about
from mm_rwkv7.sampling import Sampling
from mm_rwkv7.state import State

Medium = tuple[str, str]  # "image" or "audio", and the file's path

PAUSE = 0.05  # seconds between two updates: more would only make a browser busy


@dataclass(frozen=True)
class Progress:
    """The answer's text so far; at the end also the `answer`, and what was `read` before it because it was new, in how
    many seconds."""

    text: str
    answer: Answer | None = None
    read: tuple[Medium, ...] = ()
    read_s: float = 0.0


class Conversation:
    """One visitor's questions about a picture, a sound or both, each of which is read once; another one begins anew.

    Every question starts from the state after them, or with `follow_up` from the state after the last answer. `turns`
    are the messages so far. One question at a time; `stop` may come from any thread.
    """

    def __init__(self, pipeline: Pipeline, heard: HeardSounds | None = None) -> None:
        self.turns: list[dict[str, str]] = []
        self._pipeline = pipeline
        self._heard = heard or HeardSounds(pipeline)
        self._media: tuple[Medium, ...] = ()
        self._states: list[State] = []  # after each of them
        self._last: State | None = None  # after the last answer
        self._stop = threading.Event()
        self._busy = threading.Lock()

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._busy.locked()

    def ask(
        self, question: str, media: Sequence[Medium], sampling: Sampling, follow_up: bool = False
    ) -> Iterator[Progress]:
        """Answer a question about the media. Closing the iterator ends the writing and forgets it.

        ValueError for a bad file, an empty question, or while another answer is being written.
        """
        if not question.strip() and not (media and self._pipeline.model.config.template.wordless):
            raise ValueError("the question is empty")
        if not self._busy.acquire(blocking=False):
            raise ValueError("an answer is still being written; stop it first")
        try:
            self._stop.clear()
            began = time.perf_counter()
            read = self._open(tuple(media))
            read_s = time.perf_counter() - began
            opened = self._states[-1] if self._states else None
            state = self._last if follow_up else opened
            stream = self._pipeline.stream(question_about(question), sampling, state)
            yield from self._write(stream)
            stream.close()
            answer = stream.answer
            self._last = answer.state
            self.turns += [
                {"role": "user", "content": question},
                {"role": "assistant", "content": answer.text},
            ]
            yield Progress(answer.text, answer, read, read_s)
        finally:
            self._busy.release()

    def stop(self) -> None:
        """End the answer that is being written, if any, after its next token; what was written stays."""
        self._stop.set()

    def _open(self, media: tuple[Medium, ...]) -> tuple[Medium, ...]:
        """Read the media unless they are at hand, from the first that is another; what was read."""
        if media == self._media:
            return ()
        known = sum(1 for _ in takewhile(bool, map(eq, media, self._media)))
        states = self._states[:known]
        for kind, path in media[known:]:
            medium = path if kind == "image" else self._heard.of(path)
            message = {"role": "user", "content": [{"type": kind, kind: medium}]}
            states.append(self._pipeline.prefill([message], states[-1] if states else None))
        self._media, self._states, self.turns = media, states, []
        self._last = states[-1] if states else None
        return media[known:]

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
        self.heard = HeardSounds(pipeline)  # by everyone
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
            self._known[visitor] = conversation or Conversation(self._pipeline, self.heard), now
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
