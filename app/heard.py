"""Sounds that visitors gave, each encoded once: for its tags, and for the questions about it."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from mm_rwkv7.hearing import Heard
from mm_rwkv7.pipeline import Pipeline

TAGS = 5
CAPACITY = 8


@dataclass
class _Entry:
    heard: Heard | None = None
    encoding: threading.Lock = field(default_factory=threading.Lock)


class HeardSounds:
    """The latest sounds by path, size and time. Who asks for one that is being encoded waits for it, and nobody else
    does."""

    def __init__(self, pipeline: Pipeline, capacity: int = CAPACITY) -> None:
        self._pipeline, self._capacity = pipeline, capacity
        self._known: OrderedDict[tuple[str, int, int], _Entry] = OrderedDict()
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


def _key(path: str) -> tuple[str, int, int]:
    try:
        about = Path(path).stat()
    except OSError:
        return path, 0, 0  # reading it will say what is wrong
    return path, about.st_size, about.st_mtime_ns
