"""Conversations of several sources in one endless stream of packs, the same for every number of ranks and workers.

Letters: T tokens of a pack, S sequences in it, I pictures (or tiles), W windows of sounds.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from itertools import accumulate, islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from encoders.protocol import Pixels, join
from mm_rwkv7.processor import Picture, Processor
from training.data.conversations import Conversation, Drawn, Fault, Position, Reader
from training.data.media import at_hand, content
from training.data.packing import Sample, TooLongError, pack, tokenize

if TYPE_CHECKING:
    from training.data.feature_cache import FeatureCache

IGNORED = -100  # F.cross_entropy's own
WINDOW = 64  # packs that are filled together
FEW = 100  # samples that are seen before their broken share says anything


@dataclass(frozen=True)
class Pack:
    """Samples that lie in one row, what was left out on the way to it, and the position right after it."""

    samples: list[Sample]
    faults: list[Fault]
    position: Position


@dataclass(frozen=True)
class Seen:
    """A picture of so many tiles: its pixels, or what a cache knows under `key`."""

    pixels: Pixels | None
    tiles: int
    key: str = ""
    features: Tensor | None = None


@dataclass(frozen=True)
class Listened:
    """A sound of windows with so many `frames` each: the windows, none where a cache knows it under `key`."""

    windows: list[Tensor]
    frames: list[int]
    key: str = ""
    features: Tensor | None = None


@dataclass
class Tally:
    """How many samples there were, and how many of them cannot be read."""

    seen: int = 0
    broken: int = 0

    @property
    def share(self) -> float:
        return self.broken / max(self.seen, FEW)


class Mixture:
    """Draws conversations from `sources` by `weights`, as many samples of each relative to the others, and lays them
    into packs of `context` tokens. Every source is gone through epoch by epoch.

    The stream of packs follows from the sources' files, weights, seed and `window` alone. As many samples as fill
    `window` packs are drawn at a time and laid into them so that little stays empty; a larger window wastes less and
    mixes better, and takes longer to go on from a position.

    A conversation that is too long keeps the turns whose answers fit. One that has no such turn is left out, and so is
    one that cannot be read. More than `broken_share` of samples that cannot be read is an error.

    With a `cache`, `pixels` are those of pictures whose features it does not know, `keys` name all pictures, and
    `features` holds what is known of each, or None: `FeatureCache.see` makes them whole. Of sounds the same do
    `windows`, `sound_keys`, `sound_features` and `FeatureCache.hear`.
    """

    def __init__(
        self,
        sources: Mapping[str, Reader],
        weights: Mapping[str, float],
        processor: Processor,
        context: int,
        seed: int = 0,
        *,
        window: int = WINDOW,
        broken_share: float = 0.01,
        cache: "FeatureCache | None" = None,
    ) -> None:
        if sources.keys() != weights.keys():
            raise ValueError(f"there are weights for {sorted(weights)}, expected them for {sorted(sources)}")
        if not weights or min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"the weights are {dict(weights)}, expected some above 0 and none below")
        if context < 1 or window < 1:
            raise ValueError(f"context is {context} and window {window}, expected at least 1")
        if not 0 <= broken_share <= 1:
            raise ValueError(f"broken_share is {broken_share}, expected 0 to 1")
        self.sources = {name: sources[name] for name in sorted(sources) if weights[name] > 0}
        total = sum(weights.values())
        self._shares = list(accumulate(weights[name] / total for name in self.sources))
        self.processor = processor
        self.context = context
        self.seed = seed
        self.window = window
        self.broken_share = broken_share
        self.cache = cache
        self._drawn, self._opened = Tally(), Tally()

    def batches(
        self, position: Position = None, rank: int = 0, world: int = 1, packs_per_step: int = 1
    ) -> Iterator[dict[str, Any]]:
        """The packs of one rank for ever, beginning at `position`, a batch's own.

        `packs_per_step` counts those of all ranks together; pack i of a step goes to rank i % world. A batch holds
        `ids` (1, T), `targets` (1, T): the token to say after each where that is part of an answer, else -100,
        `cu_seqlens` (S + 1,) int32, whose last sequence is padding where the pack is not full, `pixels` of all pictures
        with `tiles` of each, `windows` and `frames` of all sounds, None without any, and `spans`, how many windows each
        takes; `samples`, their ids; `tokens`
        without padding; `faults`, what was left out on the way; and `position`, where the next step begins.
        """
        if packs_per_step < 1 or packs_per_step % world or not 0 <= rank < world:
            raise ValueError(
                f"rank {rank} of {world} takes from steps of {packs_per_step} packs, expected a multiple of {world}"
            )
        packs = self._packs(position)
        while True:
            step = list(islice(packs, packs_per_step))
            for taken in step[rank::world]:
                yield {**self._read(taken), "position": step[-1].position}

    def _packs(self, position: Position) -> Iterator[Pack]:
        position = self._start() if position is None else self._checked(position)
        done = position["pack"]
        start = {**position, "pack": 0}
        for samples, faults, end in self._windows(start):
            packs = pack([len(sample.ids) for sample in samples], self.context)
            random.Random(f"{self.seed} packs {start['drawn']}").shuffle(packs)
            for number, indices in enumerate(packs[done:], start=done + 1):
                after = end if number == len(packs) else {**start, "pack": number}
                yield Pack([samples[i] for i in indices], faults if number == 1 else [], after)
            start, done = end, 0

    @property
    def _layout(self) -> dict[str, int]:
        """What the packs after a position depend on, beside the sources."""
        return {"context": self.context, "window": self.window, "seed": self.seed}

    def _start(self) -> dict[str, Any]:
        """`pack` counts those of the window that begins after so many samples `drawn`."""
        return {**self._layout, "drawn": 0, "sources": dict.fromkeys(self.sources), "pack": 0}

    def _checked(self, position: Position) -> dict[str, Any]:
        if position["sources"].keys() != self.sources.keys():
            raise ValueError(
                f"the position is one in {sorted(position['sources'])}, the data is {sorted(self.sources)}"
            )
        if any(position[name] != value for name, value in self._layout.items()):
            found = {name: position[name] for name in self._layout}
            raise ValueError(f"the position is one in packs of {found}, expected {self._layout}")
        return dict(position)

    def _windows(self, start: dict[str, Any]) -> Iterator[tuple[list[Sample], list[Fault], dict[str, Any]]]:
        """As many samples as fill a window, what was left out between them, and where the next window begins."""
        room = self.window * self.context
        samples: list[Sample] = []
        faults: list[Fault] = []
        length, before, idle = 0, start, 0
        for drawn, after in self._draws(start):
            if isinstance(drawn, Fault):
                faults.append(drawn)
                idle += 1
                if idle == FEW * len(self.sources):
                    raise ValueError(f"none of the last {idle} samples can be used, the last one: {drawn}")
            else:
                idle = 0
                if length + len(drawn.ids) > room:
                    yield samples, faults, before
                    samples, faults, length = [], [], 0
                samples.append(drawn)
                length += len(drawn.ids)
            before = after

    def _draws(self, start: dict[str, Any]) -> Iterator[tuple[Sample | Fault, dict[str, Any]]]:
        """Every sample that is drawn, with the position right after it."""
        streams = {
            name: reader.stream(f"{self.seed} {name}", start["sources"][name]) for name, reader in self.sources.items()
        }
        names, number, places = list(self.sources), start["drawn"], start["sources"]
        while True:
            name = names[self._choice(number)]
            found, place = next(streams[name])
            number, places = number + 1, {**places, name: place}
            self._drawn.seen += 1
            yield self._tokenized(found), {**start, "drawn": number, "sources": places}

    def _tokenized(self, found: Drawn) -> Sample | Fault:
        if isinstance(found, Conversation):
            try:
                return tokenize(self.processor, found, self.context)
            except TooLongError as error:
                return Fault(found.id, found.source, str(error))
            except ValueError as error:
                found = Fault(found.id, found.source, str(error))
        self._count_broken(self._drawn, found)
        return found

    def _choice(self, number: int) -> int:
        """Which source the sample of this number comes from."""
        digest = blake2b(f"{self.seed} {number}".encode(), digest_size=8).digest()
        point = int.from_bytes(digest, "little") / 2**64
        return next((i for i, end in enumerate(self._shares) if point < end), len(self._shares) - 1)

    def _count_broken(self, tally: Tally, fault: Fault) -> None:
        """Of the samples drawn every rank counts all, of those opened its own."""
        tally.broken += 1
        share = self._drawn.share + self._opened.share
        if share > self.broken_share:
            raise ValueError(
                f"{share:.2%} of the samples cannot be read, more than {self.broken_share:.2%}; the last one: {fault}"
            )

    def _read(self, taken: Pack) -> dict[str, Any]:
        """The pack with its pictures and sounds; a sample whose own cannot be read is left out of it."""
        kept: list[Sample] = []
        faults = list(taken.faults)
        pictures: list[Seen] = []
        sounds: list[Listened] = []
        for sample in taken.samples:
            self._opened.seen += 1
            try:
                seen, heard = self._media(sample)
            except ValueError as error:
                faults.append(Fault(sample.conversation.id, sample.conversation.source, str(error)))
                self._count_broken(self._opened, faults[-1])
                continue
            kept.append(sample)
            pictures += seen
            sounds += heard
        pixels = [picture.pixels for picture in pictures if picture.pixels is not None]
        windows = [window for sound in sounds for window in sound.windows]
        batch = self._laid_out(kept) | {
            "pixels": join(pixels) if pixels else None,
            "tiles": tuple(picture.tiles for picture in pictures),
            "windows": torch.stack(windows) if windows else None,
            "frames": torch.tensor([frames for sound in sounds for frames in sound.frames]) if sounds else None,
            "spans": tuple(len(sound.frames) for sound in sounds),
            "faults": faults,
        }
        if self.cache is not None:
            batch["keys"] = [picture.key for picture in pictures]
            batch["features"] = [picture.features for picture in pictures]
            batch["sound_keys"] = [sound.key for sound in sounds]
            batch["sound_features"] = [sound.features for sound in sounds]
        return batch

    def _media(self, sample: Sample) -> tuple[list[Seen], list[Listened]]:
        pictures: list[Seen] = []
        sounds: list[Listened] = []
        for medium, size in zip(sample.media, sample.sizes, strict=True):
            source = at_hand(medium.source)
            if isinstance(medium, Picture):
                pictures.append(self._look(source, size))
            else:
                sounds.append(self._listen(source, size))
        return pictures, sounds

    def _look(self, source: Any, tiles: int) -> Seen:
        known = None if self.cache is None else self.cache.pictures
        if known is None:
            return Seen(self.processor.pixels(source), tiles)
        key = known.key(content(source))
        features = known.get(key)
        return Seen(self.processor.pixels(source) if features is None else None, tiles, key, features)

    def _listen(self, source: Any, samples: int) -> Listened:
        known = None if self.cache is None else self.cache.sounds
        assert self.processor.sound_tokens is not None
        frontend = self.processor.sound_tokens.frontend
        key = "" if known is None else known.key(content(source))
        features = None if known is None else known.get(key)
        if features is not None:
            whole, rest = divmod(frontend.count(samples), frontend.frames)
            frames = [frontend.frames] * whole + [rest] * bool(rest)
            if len(features) == len(frames):
                return Listened([], frames, key, features)
        sound = self.processor.sound(source)
        if sound.samples != samples:
            raise ValueError(f"the sound has {sound.samples} samples, its header says {samples}")
        pairs = list(frontend.windows(sound.blocks()))
        return Listened([window for window, _ in pairs], [frames for _, frames in pairs], key)

    def _laid_out(self, samples: list[Sample]) -> dict[str, Any]:
        ids = torch.full((1, self.context), self.processor.tokenizer.end_id)
        targets = torch.full((1, self.context), IGNORED)
        ends = [0]
        for sample in samples:
            begin = ends[-1]
            ends.append(begin + len(sample.ids))
            ids[0, begin : ends[-1]] = torch.tensor(sample.ids)
            for first, last in sample.answers:
                targets[0, begin + first - 1 : begin + last - 1] = ids[0, begin + first : begin + last]
        tokens = ends[-1]
        if tokens < self.context:
            ends.append(self.context)
        return {
            "ids": ids,
            "targets": targets,
            "cu_seqlens": torch.tensor(ends, dtype=torch.int32),
            "samples": [sample.conversation.id for sample in samples],
            "tokens": tokens,
        }
