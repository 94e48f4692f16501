"""Sounds that visitors gave, each encoded once: for its tags, and for the questions about it."""

import hashlib
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from mm_rwkv7.hearing import Heard
from mm_rwkv7.pipeline import Pipeline

TAGS = 5
CAPACITY = 8


@dataclass
class _Entry:
    heard: Heard | None = None
    encoding: threading.Lock = field(default_factory=threading.Lock)


class HeardSounds:
    """The latest sounds by path and content. Who asks for one that is being encoded waits for it, and nobody else
    does."""

    def __init__(self, pipeline: Pipeline, capacity: int = CAPACITY) -> None:
        self._pipeline, self._capacity = pipeline, capacity
        self._known: OrderedDict[tuple[str, bytes], _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, path: str) -> Heard:
        """The sound of a file. ValueError for what cannot be read, and from a model that cannot hear."""
        key = _key(path)
        with self._lock:
            entry = self._known[key] = self._known.pop(key, _Entry())
            while len(self._known) > self._capacity:
                self._known.popitem(last=False)
        with entry.encoding:
            if entry.heard is None:
                entry.heard = self._pipeline.hear(path, TAGS)
            return entry.heard


def _key(path: str) -> tuple[str, bytes]:
    """An upload that comes again lies where it lay, but is written anew."""
    try:
        with open(path, "rb") as file:
            return path, hashlib.file_digest(file, "sha256").digest()
    except OSError:
        return path, b""  # reading it will say what is wrong
