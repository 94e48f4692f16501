"""Pictures and sounds of all requests, encoded side by side, and each only once while it is remembered.

Letters: D width.
"""

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from app.lru import ByteBound
from encoders.protocol import Pixels, join, move
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sounds import Sound
from mm_rwkv7.tagger import WINDOWS

TILES = 16  # of pictures that are encoded at once


class Features:
    """What a medium's placeholders stand for, (count, D), as far as it has been encoded. `size` are a picture's tiles
    or a sound's samples. Of what is not `shared` the beginning is forgotten when it has been taken."""

    def __init__(self, count: int, size: int, shared: bool) -> None:
        self.count, self.size, self.shared = count, size, shared
        self.ready = 0
        self.seconds = 0.0
        self.error: Exception | None = None
        self.windows: Iterator[tuple[Tensor, int]] | None = None  # of a sound that is being encoded
        self._blocks: list[Tensor] = []
        self._forgotten = 0

    def add(self, tokens: Tensor) -> None:
        self._blocks.append(tokens)
        self.ready += len(tokens)

    def take(self, start: int, stop: int) -> Tensor:
        """Tokens start ... stop - 1, which are ready."""
        assert self._forgotten <= start <= stop <= self.ready
        if not self.shared:
            while self._blocks and self._forgotten + len(self._blocks[0]) <= start:
                self._forgotten += len(self._blocks.pop(0))
        whole = self._blocks[0] if len(self._blocks) == 1 else torch.cat(self._blocks)
        return whole[start - self._forgotten : stop - self._forgotten]


@dataclass(frozen=True)
class Medium:
    """A picture or a sound in a prompt: its placeholders among `ids`, which begin at `start` of the prompt. `features`
    are there already, or else `content` is."""

    kind: str
    key: bytes
    ids: list[int]
    offset: int  # of the first placeholder among `ids`
    count: int
    size: int
    content: Pixels | Sound | None = None
    features: Features | None = None
    start: int = 0

    def at(self, start: int) -> "Medium":
        return replace(self, start=start)


class MediaEncoder:
    """`find` from any thread, everything else from the engine's. The features of at most `limit` bytes are remembered;
    those of a medium that would take more than a quarter of it belong to its request alone."""

    def __init__(self, pipeline: Pipeline, limit: int) -> None:
        self.encoded = self.remembered = 0  # media, since the beginning
        self._pipeline = pipeline
        self._token_bytes = pipeline.model.config.lm.width * pipeline.model.lm.emb.weight.element_size()
        self._cache = ByteBound[Features](limit)
        self._under_way: WeakValueDictionary[bytes, Features] = WeakValueDictionary()
        self._lock = threading.Lock()

    @property
    def held(self) -> int:
        """Bytes of the features that are remembered."""
        return self._cache.bytes

    def find(self, key: bytes) -> Features | None:
        """The features of a medium that was encoded before."""
        with self._lock:
            return self._cache.get(key)

    def begin(self, medium: Medium) -> Features:
        """The medium's features, which `work` will make unless somebody else's request has it do so already."""
        found = medium.features or self.find(medium.key) or self._under_way.get(medium.key)
        if found is not None:
            self.remembered += 1
            return found
        shared = 4 * medium.count * self._token_bytes <= self._cache.limit
        features = Features(medium.count, medium.size, shared)
        content = medium.content
        if isinstance(content, Sound):
            tokens = self._pipeline.processor.sound_tokens
            assert tokens is not None
            features.windows = tokens.frontend.windows(content.blocks())
        if shared:
            self._under_way[medium.key] = features
        return features

    def work(self, wanted: Sequence[tuple[Medium, Features]]) -> None:
        """Encode some of what is wanted next: as many pictures and windows of sounds as are good to do at once."""
        pictures: list[tuple[Medium, Features]] = []
        sounds: list[tuple[Medium, Features]] = []
        for medium, features in wanted:
            if features.error is None and all(features is not other for _, other in (*pictures, *sounds)):
                (pictures if medium.kind == "image" else sounds).append((medium, features))
        taken = pictures[:1]
        for one in pictures[1:]:
            if sum(medium.size for medium, _ in taken) + one[0].size <= TILES:
                taken.append(one)
        for several, encode in ((taken, self._see), (sounds, self._hear)):
            try:
                if several:
                    encode(several)
            except (RuntimeError, ValueError) as error:  # no memory for them, or a file that has changed
                for _, features in several:
                    features.error = error

    def _see(self, taken: list[tuple[Medium, Features]]) -> None:
        began = time.perf_counter()
        contents = [medium.content for medium, _ in taken]
        pixels = join([content for content in contents if content is not None and not isinstance(content, Sound)])
        tiles = [medium.size for medium, _ in taken]
        tokens = self._pipeline.model.encode(move(pixels, self._pipeline.device), tiles).flatten(0, -2)
        parts = tokens.split([medium.count for medium, _ in taken])
        for (medium, features), part in zip(taken, parts, strict=True):
            features.add(part.clone())  # a view would keep the others alive
            features.seconds += time.perf_counter() - began
            self._remember(medium, features)

    def _hear(self, sounds: list[tuple[Medium, Features]]) -> None:
        began = time.perf_counter()
        windows: list[tuple[Tensor, int]] = []
        owners: list[tuple[Medium, Features, int]] = []
        for medium, features in sounds:
            assert features.windows is not None
            try:
                several = list(islice(features.windows, WINDOWS - len(windows)))
            except ValueError as error:  # the file has changed
                features.error = error
                continue
            if not several:
                features.error = ValueError("a sound is shorter than it was")
                continue
            windows += several
            owners.append((medium, features, len(several)))
            if len(windows) == WINDOWS:
                break
        if not windows:
            return
        pictures, frames = zip(*windows, strict=True)
        device = self._pipeline.device
        tokens = self._pipeline.model.hear(torch.stack(pictures).to(device), torch.tensor(frames, device=device))
        counts = self._pipeline.processor.sound_tokens
        assert counts is not None
        at = 0
        for medium, features, number in owners:
            count = sum(counts.of_window(frames[i]) for i in range(at, at + number))
            at += number
            part, tokens = tokens[:count], tokens[count:]
            features.add(part.clone())
            features.seconds += time.perf_counter() - began
            if features.ready >= features.count:
                features.windows = None
                self._remember(medium, features)

    def _remember(self, medium: Medium, features: Features) -> None:
        self.encoded += 1
        if features.shared:
            with self._lock:
                self._cache.put(medium.key, features, features.count * self._token_bytes)
