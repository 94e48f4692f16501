"""Several models behind one page or server, each with its own engine."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePath
from typing import TypeVar, cast

from app.engine import Engine
from app.requests import Busy, Request, Ticket
from mm_rwkv7.pipeline import Pipeline

Result = TypeVar("Result")

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
    evicted: "tuple[str, Engine] | None" = None  # what is to be closed for it
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
        self._lock = threading.RLock()  # a ticket may be found unused, and its engine given back, in the midst of this
        self._clock = count(1)
        self._closed = False
        self.on_close: Callable[[str], None] = lambda name: None  # told the name of a model that made room

    @property
    def names(self) -> list[str]:
        return list(self._places)

    @property
    def open(self) -> dict[str, Engine]:
        """The engines that are open now."""
        return {name: engine for name, place in self._places.items() if (engine := place.engine) is not None}

    @contextmanager
    def use(self, name: str) -> Iterator[Engine]:
        """A model's engine, which stays open until this is left; it may have to be opened first. ValueError for a name
        that is none, `Busy` when as many others are in use as may be open, RuntimeError after `close`."""
        place = self._place(name)
        self._enter(place)
        try:
            with place.opening:
                if place.evicted is not None:  # before its own opens: both would be in memory
                    self._end(place)
                self._check()  # it may have been closed while this waited
                if place.engine is None:
                    place.engine = self._open_engine(place.source)
            yield place.engine
        finally:
            with self._lock:
                place.users -= 1
                place.used = next(self._clock)
                place.taken = place.engine is not None or place.users > 0

    @contextmanager
    def served(self) -> Iterator["Engine | Models"]:
        """What a page or a server is built around: the engine where there is one model, or else all of this, which is
        closed in the end. The usual model is opened, so that what is wrong with it is said at once."""
        try:
            with self.use(self.names[0]) as engine:
                if len(self.names) == 1:
                    yield engine
            if len(self.names) > 1:
                yield self
        finally:
            self.close()

    def engine(self, name: str) -> Engine:
        """What stands for a model's engine, to be held for any time: each request and each call opens the engine if it
        must, and keeps it open until it has ended or nobody waits for it. ValueError for a name that is none."""
        self._place(name)
        return cast(Engine, _Standing(self, name))

    def close(self) -> None:
        """Close every engine that is open; none opens again."""
        with self._lock:
            self._closed = True
        for place in self._places.values():
            with place.opening:
                if place.evicted is not None:  # who is about to close it will find all closed
                    self._end(place)
                if place.engine is not None:
                    place.engine.close()
                place.engine, place.taken = None, False

    def _place(self, name: str) -> _Place:
        place = self._places.get(name)
        if place is None:
            raise ValueError(f"there is no model {name[:80]!r}, expected one of {', '.join(self._places)}")
        return place

    def _check(self) -> None:
        if self._closed:
            raise RuntimeError(f"the models are closed: {', '.join(self._places)}")

    def _enter(self, place: _Place) -> None:
        """Count a user in, and put away an engine that must be closed for this one."""
        with self._lock:
            self._check()
            if not place.taken:
                if sum(other.taken for other in self._places.values()) >= self._at_once:
                    idle = [name for name, other in self._places.items() if other.taken and not other.users]
                    if not idle:
                        raise Busy(RETRY_S)
                    name = min(idle, key=lambda name: self._places[name].used)
                    least = self._places[name]
                    place.evicted = None if least.engine is None else (name, least.engine)
                    least.engine, least.taken = None, False
                place.taken = True
            place.users += 1

    def _end(self, place: _Place) -> None:
        """Close the engine that makes room, and have its memory back."""
        assert place.evicted is not None
        name, engine = place.evicted
        place.evicted = None
        engine.close()
        self.on_close(name)
        del engine
        gc.collect()  # an engine and its thread know one another


class _Standing:
    """As much of an engine as a conversation needs."""

    def __init__(self, models: Models, name: str) -> None:
        self._models, self._name = models, name

    @property
    def pipeline(self) -> Pipeline:
        with self._models.use(self._name) as engine:
            return engine.pipeline

    def submit(self, request: Request) -> Ticket:
        with ExitStack() as using:
            ticket = using.enter_context(self._models.use(self._name)).submit(request)
            weakref.finalize(ticket, using.pop_all().close).atexit = False
            return ticket

    def call(self, function: Callable[[Pipeline], Result]) -> "Future[Result]":
        with ExitStack() as using:
            future = using.enter_context(self._models.use(self._name)).call(function)
            done = using.pop_all()
            future.add_done_callback(lambda _: done.close())
            return future
