"""A conversation as a list of turns with the state after each. Knows nothing of web pages.

Since a state is a value of constant size, undo, edit, another answer and a fork compute nothing that was computed
before: they go on from a state that is there.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from app.engine import Engine
from app.requests import Cancelled, Request, Ticket
from app.web.growing import growing
from app.web.shelf import NOTHING, Handle, Shelf, size_of
from mm_rwkv7.pipeline import Answer
from mm_rwkv7.sampling import Sampling


@dataclass(frozen=True)
class Medium:
    """A picture or a sound that was said: `kind` "image" or "audio", the file's `name`, what is shown of it (`path`,
    while the file is there, or else the small PNG `preview`), and what the model reads, None once it was read."""

    kind: str
    name: str
    path: str = ""
    preview: bytes = b""
    content: Any = field(default=None, repr=False)


@dataclass(frozen=True)
class Figures:
    """How an answer came: seconds to its first token, tokens read and written, seconds of reading and of encoding,
    tokens written a second, why it ended ("" while it is written), and the state's bytes."""

    first_s: float = 0.0
    read: int = 0
    recalled: int = 0
    read_s: float = 0.0
    encode_s: float = 0.0
    written: int = 0
    per_s: float = 0.0
    ending: str = ""
    state_bytes: int = 0


@dataclass(frozen=True)
class Turn:
    """What a person said and what was answered. `begins` is the state that the words came after, `after` the one after
    the answer, `opened` the one after the latest pictures and sounds so far."""

    media: tuple[Medium, ...]
    text: str
    answer: str
    begins: Handle
    opened: Handle
    after: Handle
    figures: Figures = Figures()


@dataclass(frozen=True)
class Progress:
    """All turns, the last of which may still be on its way (`ending` of its figures is ""); `reading` while its
    pictures and sounds are read."""

    turns: tuple[Turn, ...]
    reading: bool = False

    @property
    def last(self) -> Turn:
        return self.turns[-1]


Plan = Callable[[], tuple[tuple[Turn, ...], Turn]]  # the turns that stay, and the one that is to be answered
Decode = Callable[[Turn], Turn]  # the turn with its pictures and sounds decoded


class Conversation:
    """Turns over an engine, one question at a time; `stop` may come from any thread. A turn that was refused or left
    early changes nothing.

    What is asked comes after the turns that there are when its answer begins, that is when the first `Progress` is
    taken: two questions of one moment come one after the other, or the second is refused.
    """

    def __init__(self, engine: Engine, shelf: Shelf, turns: Sequence[Turn] = ()) -> None:
        self.turns = tuple(turns)
        self._engine, self._shelf = engine, shelf
        self._busy = threading.Lock()
        self._ticket: Ticket | None = None
        self._stopped = self._reading = False

    @property
    def busy(self) -> bool:
        """Whether an answer is being written."""
        return self._busy.locked()

    def ask(
        self,
        text: str,
        media: Sequence[Medium],
        sampling: Sampling,
        remember: bool = True,
        decode: Decode = lambda turn: turn,
    ) -> Iterator[Progress]:
        """Say something and have it answered. Closing the iterator ends the writing and forgets it.

        Without `remember` the words come after the latest pictures and sounds alone, as if nothing else had been said.
        `decode` is called when the first `Progress` has shown the turn: what takes long belongs there.
        ValueError for what cannot be read, for no words, while an answer is written, and for a state that is gone.
        """

        def plan() -> tuple[tuple[Turn, ...], Turn]:
            opened, after = (self.turns[-1].opened, self.turns[-1].after) if self.turns else (NOTHING, NOTHING)
            alone = NOTHING if media else opened
            before = after if remember else alone
            return self.turns, Turn(tuple(media), text, "", before, opened, NOTHING)

        return self._answered(plan, sampling, decode)

    def edit(self, number: int, text: str, sampling: Sampling) -> Iterator[Progress]:
        """Go back to before the words of turn `number`, and say these instead; its pictures and sounds stay, and what
        came after it goes once the new answer is there. Like `ask` otherwise."""
        return self._answered(lambda: self._again(number, text), sampling)

    def regenerate(self, sampling: Sampling) -> Iterator[Progress]:
        """Another answer to what was said last."""
        return self._answered(lambda: self._again(len(self.turns) - 1), sampling)

    def kinds(self, media: Sequence[Medium], remember: bool = True) -> set[str]:
        """Of the pictures and sounds that a question which is asked with these comes after."""
        said = [some for some in (*(turn.media for turn in self.turns), media) if some]
        return {one.kind for some in (said if remember else said[-1:]) for one in some}

    def undo(self) -> Turn:
        """Take the last turn back, and return it. Nothing is computed. ValueError where nothing was said, while an
        answer is written, and when the state before it is gone."""
        with self._alone():
            if not self.turns:
                raise ValueError("nothing was said yet")
            *kept, undone = self.turns
            self._shelf.get(kept[-1].after if kept else NOTHING)
            self.turns = tuple(kept)
            return undone

    def fork(self) -> "Conversation":
        """Another conversation with the same past; the two share its states."""
        return Conversation(self._engine, self._shelf, self.turns)

    def stop(self) -> None:
        """End the answer that is being written, if any; what was written stays."""
        self._stopped = True
        if (ticket := self._ticket) is not None:
            ticket.cancel() if self._reading else ticket.stop()

    def _alone(self) -> "_Alone":
        return _Alone(self._busy)

    def _again(self, number: int, text: str | None = None) -> tuple[tuple[Turn, ...], Turn]:
        """Turn `number` with these words, or its own, before it is answered."""
        if not self.turns:
            raise ValueError("nothing was said yet")
        if not 0 <= number < len(self.turns):
            raise ValueError(f"there is no turn {number + 1}, the conversation has {len(self.turns)}")
        turn = self.turns[number]
        words = turn.text if text is None else text
        return self.turns[:number], replace(turn, text=words, answer="", after=NOTHING, figures=Figures())

    def _answered(self, plan: Plan, sampling: Sampling, decode: Decode = lambda turn: turn) -> Iterator[Progress]:
        with self._alone():
            kept, turn = plan()
            self._stopped = False
            clock = _Clock()
            before = self._shelf.get(turn.begins)
            try:
                if any(medium.content is not None for medium in turn.media):
                    yield Progress((*kept, turn), True)
                    turn = decode(turn)
                    if self._stopped:
                        return
                wordless = self._engine.pipeline.model.config.template.wordless
                if not turn.text.strip() and not (turn.media and wordless):
                    raise ValueError("the question is empty")
                if unread := [medium for medium in turn.media if medium.content is not None]:
                    self._reading = True
                    parts = [{"type": medium.kind, medium.kind: medium.content} for medium in unread]
                    with self._submit(
                        Request([{"role": "user", "content": parts}], state=before, write=False)
                    ) as ticket:
                        before = clock.add(ticket.result(), ticket).state
                    self._reading = False
                    opened = self._shelf.put(before)
                    read = tuple(replace(medium, content=None) for medium in turn.media)
                    turn = replace(turn, media=read, begins=opened, opened=opened)
                said = Request([{"role": "user", "content": turn.text}], state=before, sampling=sampling)
                with self._submit(said) as ticket:
                    yield from self._pieces(kept, turn, ticket, clock)
                    answer = clock.add(ticket.result(), ticket)
            except Cancelled:
                if not self._stopped:
                    raise
                return  # stopped before there was anything to keep
            finally:
                self._ticket, self._reading = None, False
            turn = replace(
                turn, answer=answer.text, after=self._shelf.put(answer.state), figures=clock.figures(ticket, answer)
            )
            self.turns = (*kept, turn)
            yield Progress(self.turns)

    def _submit(self, request: Request) -> Ticket:
        if self._stopped:  # a short answer would be there before it could be cancelled
            raise Cancelled("the answer was stopped before it began")
        self._ticket = ticket = self._engine.submit(request)
        if self._stopped:
            ticket.cancel()
        return ticket

    def _pieces(self, kept: tuple[Turn, ...], turn: Turn, ticket: Ticket, clock: "_Clock") -> Iterator[Progress]:
        for text in growing(ticket):
            clock.first = clock.first or time.perf_counter()
            yield Progress((*kept, replace(turn, answer=text, figures=clock.figures(ticket))))


class _Alone:
    """Holds a conversation, or refuses."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            raise ValueError("an answer is still being written; stop it first")

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class _Clock:
    """Adds up what the requests of one turn took."""

    def __init__(self) -> None:
        self.began, self.first = time.perf_counter(), 0.0
        self._read = self._recalled = 0
        self._read_s = self._encode_s = 0.0

    def add(self, answer: Answer, ticket: Ticket) -> Answer:
        self._read += answer.usage.prompt_tokens + answer.usage.media_tokens - ticket.recalled
        self._recalled += ticket.recalled
        self._read_s += answer.timings.prefill_s
        self._encode_s += answer.timings.encode_s
        return answer

    def figures(self, ticket: Ticket, answer: Answer | None = None) -> Figures:
        now = time.perf_counter()
        writing_s = now - self.first
        return Figures(
            (self.first or now) - self.began,
            self._read,
            self._recalled,
            self._read_s,
            self._encode_s,
            ticket.written,
            answer.timings.decode_tokens_per_s
            if answer
            else (ticket.written - 1) / writing_s
            if writing_s > 0
            else 0.0,
            answer.finish_reason if answer else "",
            size_of(answer.state) if answer else 0,
        )
