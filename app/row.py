"""One request while the engine works on it: what it still has to read, and what it has written."""

import time
from dataclasses import dataclass, field

from torch import Tensor

from app.media_encoder import Features, Medium
from app.prompts import Place, Prompt
from app.requests import Request, Ticket
from mm_rwkv7.generate import Writer
from mm_rwkv7.sampler import Sampler

AHEAD = 1024  # tokens of a sound that are encoded before they are read


@dataclass(eq=False)
class Row:
    """`slot` is where its state lies in the pool, -1 while it waits; `position` how many of the prompt's ids were read,
    of which `recalled` came with a state that was known; `hidden` (D,) what the head reads next once all were.

    `ending` is "" while it is read and written, then the finish reason; `forced` are the ids that its state must still
    read before it is given back.
    """

    request: Request
    ticket: Ticket
    prompt: Prompt
    writer: Writer
    sampler: Sampler | None  # None: the likeliest token
    submitted: float = field(default_factory=time.perf_counter)
    slot: int = -1
    position: int = 0
    recalled: int = 0
    features: dict[int, Features] = field(default_factory=dict)  # by where a medium starts
    hidden: Tensor | None = None
    text: str = ""
    ending: str = ""
    forced: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)  # what its state read after the prompt
    prefill_s: float = 0.0
    began: float = 0.0  # to write
    first: float = 0.0  # token

    @property
    def expired(self) -> bool:
        limit = self.request.timeout_s
        return limit is not None and time.perf_counter() - self.submitted > limit

    @property
    def pause(self) -> Place | None:
        """The next place whose state is to be kept."""
        return next((place for place in self.prompt.places if place.kept and place.position > self.position), None)

    def readable(self) -> int:
        """How many ids can be read now: up to the next place to pause at, and to the first feature that is missing."""
        pause = self.pause
        end = len(self.prompt.ids) if pause is None else pause.position
        for medium in self.prompt.media:
            first = medium.start + medium.offset
            if first + medium.count > self.position:
                features = self.features.get(medium.start)
                ready = 0 if features is None else features.ready
                if ready < medium.count:
                    end = min(end, first + ready)
                    break
        return end - self.position

    def wanted(self) -> list[tuple[Medium, Features]]:
        """The media that must be encoded for what is read next; of a long sound no more, for memory's sake."""
        found = []
        for medium in self.prompt.media:
            features = self.features.get(medium.start)
            taken = max(0, self.position - medium.start - medium.offset)
            if features and features.ready < min(medium.count, taken + AHEAD):
                found.append((medium, features))
        return found

    def tokens_of(self, kind: str, count: int) -> list[Tensor]:
        """The features of that kind behind the next `count` ids."""
        found = []
        for medium in self.prompt.media:
            first = medium.start + medium.offset
            start, stop = max(first, self.position), min(first + medium.count, self.position + count)
            if medium.kind == kind and start < stop:
                found.append(self.features[medium.start].take(start - first, stop - first))
        return found
