"""Conversations to train on: what every reader gives, whatever its files look like."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from mm_rwkv7.processor import Message
from training.data.order import walk

Position = Any  # what JSON can hold


@runtime_checkable
class Stored(Protocol):
    """A picture or a sound inside a larger file, read when it is wanted."""

    def read(self) -> bytes: ...


Media = Any  # a path, bytes, `Stored`, a PIL image or (waveform, rate)


@dataclass(frozen=True)
class Conversation:
    """Messages as `Processor` takes them, but for pictures and sounds, which may be `Stored`. `source` names the
    reader and `id` the record in it."""

    id: str
    messages: tuple[Message, ...]
    source: str


@dataclass(frozen=True)
class Fault:
    """A record that is left out, and why."""

    id: str
    source: str
    reason: str

    def __str__(self) -> str:
        return f"{self.source}, {self.id}: {self.reason}"


Drawn = Conversation | Fault


class Reader(ABC):
    """A source of conversations. `name` is what logs and errors call it."""

    name: str

    @abstractmethod
    def stream(self, seed: int | str, position: Position = None) -> Iterator[tuple[Drawn, Position]]:
        """Its records for ever, epoch by epoch in an order that `seed` chooses, each with the position right after it.
        It begins at `position`, or at the beginning. A record that cannot be used is a `Fault`."""


class Indexed(Reader):
    """A reader whose records can be asked for by number. They lie in blocks (shards, row groups), of which one is read
    after another; an epoch shuffles the blocks and the records of each."""

    @property
    @abstractmethod
    def blocks(self) -> Sequence[int]:
        """How many records there are in each block."""

    @abstractmethod
    def get(self, block: int, item: int) -> Conversation:
        """A record. A ValueError says what is wrong with it."""

    @abstractmethod
    def label(self, block: int, item: int) -> str:
        """Which file holds a record, and its number there."""

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.blocks))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def place(self, index: int) -> tuple[int, int]:
        """The block and the item of the record `index` in the order of the files."""
        from bisect import bisect_right

        if not 0 <= index < len(self):
            raise IndexError(f"{self.name} has {len(self)} records, there is no number {index}")
        block = bisect_right(self._ends, index)
        return block, index - self._ends[block] + self.blocks[block]

    def __getitem__(self, index: int) -> Conversation:
        return self.get(*self.place(index))

    def draw(self, block: int, item: int) -> Drawn:
        """A record, or why it cannot be used."""
        try:
            return self.get(block, item)
        except ValueError as error:
            return Fault(self.label(block, item), self.name, str(error))

    def stream(self, seed: int | str, position: Position = None) -> Iterator[tuple[Drawn, Position]]:
        if not len(self):
            raise ValueError(f"{self.name} has no records")
        total, *place = (len(self), 0, 0, 0) if position is None else position
        if total != len(self):
            raise ValueError(f"{self.name} has {len(self)} records, the position is one among {total}")
        for block, item, after in walk(self.blocks, str(seed), (place[0], place[1], place[2])):
            yield self.draw(block, item), [total, *after]


def media_in(folder: Path, entry: Any) -> Media:
    """A picture or a sound as a record names it: a path, from `folder` on, or `{bytes, path}` as `datasets` writes."""
    if isinstance(entry, dict) and (entry.get("bytes") or entry.get("path")):
        return entry["bytes"] or folder / entry["path"]
    if isinstance(entry, str) and entry:
        return folder / entry
    raise ValueError(f"a picture or a sound is given as {entry!r:.60}, expected a path or bytes")
