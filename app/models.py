"""Several models behind one page or server, each with its own engine."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePath

from app.engine import Engine
from app.requests import Busy

Engines = Callable[[str], AbstractContextManager[Engine]]  # a model's name -> its engine, for as long as it is used

RETRY_S = 10.0  # what who finds every engine taken is told to wait


def only(engine: Engine) -> Engines:
    """The one engine, whatever the name."""
    return lambda name: nullcontext(engine)


def public_name(name: str) -> str:
    """A model's name for strangers: no path of this machine."""
    if name.startswith("hf:"):
        return name[len("hf:") :]
    return PurePath(name).name or "model"


@dataclass
class _Place:
    """Of one model. `taken` from when it begins to open until it is to close."""

    source: str
    engine: Engine | None = None
    users: int = 0
    taken: bool = False
    used: int = 0  # the greater, the later
    opening: threading.Lock = field(default_factory=threading.Lock)


class Models:
    """Models by their public names, the first of them the usual one. `open_engine` makes a model's engine when it is
    first used; at most `at_once` are open, and the one that was used least recently is closed for another, unless
    somebody is using it. All of it may be called from any thread; `close` when nobody uses any."""

    def __init__(self, sources: Sequence[str], open_engine: Callable[[str], Engine], at_once: int = 1) -> None:
        if not sources or at_once < 1:
            raise ValueError(f"{len(sources)} models with {at_once} open at once, expected at least one of each")
        self._places = {public_name(source): _Place(source) for source in sources}
        if len(self._places) < len(sources):
            names = ", ".join(map(public_name, sources))
            raise ValueError(f"two models would have one name among {names}: the last parts of their paths must differ")
        self._open_engine, self._at_once = open_engine, at_once
        self._lock = threading.Lock()
        self._clock = count(1)

    @property
    def names(self) -> list[str]:
        return list(self._places)

    @property
    def open(self) -> dict[str, Engine]:
        """The engines that are open now."""
        return {name: place.engine for name, place in self._places.items() if place.engine is not None}

    @contextmanager
    def use(self, name: str) -> Iterator[Engine]:
        """A model's engine, which stays open until this is left; it may have to be opened first. ValueError for a name
        that is none, `Busy` when as many others are in use as may be open."""
        place = self._places.get(name)
        if place is None:
            raise ValueError(f"there is no model {name[:80]!r}, expected one of {', '.join(self._places)}")
        closing = self._enter(place)
        try:
            if closing is not None:
                closing.close()
            with place.opening:
                if place.engine is None:
                    place.engine = self._open_engine(place.source)
            yield place.engine
        finally:
            with self._lock:
                place.users -= 1
                place.used = next(self._clock)
                place.taken = place.engine is not None or place.users > 0

    def close(self) -> None:
        """Close every engine that is open."""
        for place in self._places.values():
            with place.opening:
                if place.engine is not None:
                    place.engine.close()
                place.engine, place.taken = None, False

    def _enter(self, place: _Place) -> Engine | None:
        """Count a user in; an engine that must be closed for this one."""
        with self._lock:
            closing = None
            if not place.taken:
                if sum(other.taken for other in self._places.values()) >= self._at_once:
                    idle = [other for other in self._places.values() if other.taken and not other.users]
                    if not idle:
                        raise Busy(RETRY_S)
                    least = min(idle, key=lambda other: other.used)
                    closing, least.engine, least.taken = least.engine, None, False
                place.taken = True
            place.users += 1
            return closing
