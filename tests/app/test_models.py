"""Which engines are open, and that nobody loses the one in use."""

import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest

from app.cli import main
from app.models import Models, public_name
from app.requests import Busy, Request
from tests.app.servers import until


class Fake:
    """What `Models` knows of an engine."""

    def __init__(self, source: str) -> None:
        self.source, self.closed = source, 0

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def opened() -> list[Fake]:
    return []


@pytest.fixture
def opening(opened: list[Fake]) -> Callable[[str], Any]:
    def make(source: str) -> Any:
        if source.endswith("broken"):
            raise ValueError(f"{source} is broken")
        opened.append(Fake(source))
        return opened[-1]

    return make


def test_names_are_no_paths(opening: Any) -> None:
    assert [public_name(name) for name in ("nano", "hf:a/b", "/x/y/z")] == ["nano", "a/b", "z"]
    assert Models(["nano", "hf:a/b", "/x/y/z"], opening).names == ["nano", "a/b", "z"]
    for sources, said in ((["/x/a", "/y/a"], "one name"), ([], "at least one")):
        with pytest.raises(ValueError, match=said):
            Models(sources, opening)
    with pytest.raises(ValueError, match="at least one"):
        Models(["a"], opening, at_once=0)


def test_a_model_opens_when_it_is_used_and_the_least_recent_one_closes(opening: Any, opened: list[Fake]) -> None:
    models = Models(["a", "b", "c"], opening, at_once=2)
    assert not opened
    for name in ("a", "b", "a", "c", "a", "b"):
        with models.use(name) as engine:
            assert engine.source == name  # type: ignore[attr-defined]
            assert not engine.closed  # type: ignore[attr-defined]
            assert len(models.open) <= 2
    assert [engine.source for engine in opened] == ["a", "b", "c", "b"]
    assert set(models.open) == {"a", "b"}
    models.close()
    assert all(engine.closed for engine in opened)


def test_what_is_closed_does_not_open_again(opening: Any, opened: list[Fake]) -> None:
    models = Models(["a", "b"], opening, at_once=2)
    with models.use("a"):
        pass
    standing = models.engine("a")
    models.close()
    with pytest.raises(RuntimeError, match="the models are closed: a, b"), models.use("b"):
        pass
    with pytest.raises(RuntimeError, match="closed"):
        standing.submit(Request(text="a"))
    assert [engine.closed for engine in opened] == [1]


def test_who_waits_for_a_model_while_all_is_closed_opens_none(opened: list[Fake]) -> None:
    begun, go = threading.Event(), threading.Event()

    def slowly(source: str) -> Any:
        begun.set()
        assert go.wait(30)
        opened.append(Fake(source))
        return opened[-1]

    models = Models(["a", "b"], slowly)

    def use(name: str) -> None:
        with suppress(RuntimeError), models.use(name):
            pass

    first, second = (threading.Thread(target=use, args=("a",)) for _ in range(2))
    first.start()
    assert begun.wait(30)
    second.start()
    closing = threading.Thread(target=models.close)
    closing.start()
    until(lambda: models._closed, "it closes")
    go.set()
    for thread in (first, second, closing):
        thread.join(30)
    assert [engine.closed for engine in opened] == [1]
    assert not models.open
    with pytest.raises(RuntimeError, match="closed"), models.use("b"):
        pass


def test_an_engine_in_use_is_not_closed(opening: Any, opened: list[Fake]) -> None:
    models = Models(["a", "b"], opening)
    with models.use("a") as engine, models.use("a") as same:
        assert engine is same
        with pytest.raises(Busy), models.use("b"):
            pass
    with models.use("b"):
        assert opened[0].closed


def test_what_cannot_be_opened_takes_no_place(opening: Any, opened: list[Fake]) -> None:
    models = Models(["a", "broken"], opening)
    for name, said in (("broken", "is broken"), ("none", "there is no model 'none', expected one of a, broken")):
        with pytest.raises(ValueError, match=said), models.use(name):
            pass
    with models.use("a"), pytest.raises(Busy), models.use("broken"):
        pass
    with models.use("a"):
        assert len(opened) == 1


def test_many_threads_share_what_is_open(opening: Any, opened: list[Fake], seed: int) -> None:
    import random

    models, names = Models(["a", "b", "c"], opening, at_once=2), ["a", "b", "c"]
    failures: list[str] = []

    def work(number: int) -> None:
        rng = random.Random(seed + number)
        for _ in range(200):
            name = rng.choice(names)
            try:
                with models.use(name) as engine:
                    time.sleep(rng.random() / 10_000)
                    if engine.closed or engine.source != name:  # type: ignore[attr-defined]
                        failures.append(name)
            except Busy:
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, f"seed {seed}"
    assert all(engine.closed <= 1 for engine in opened), f"seed {seed}"
    assert len(models.open) <= 2
    assert sum(not engine.closed for engine in opened) == len(models.open), f"seed {seed}"


def test_every_model_is_looked_for_before_any_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    for names, said in ((["nano", "/none/such"], "model '/none/such' does not exist"), (["nano", "nano"], "one name")):
        given = [word for name in names for word in ("--model", name)]
        assert main(["app", "--port", str(port), *given]) == 2
        assert said in capsys.readouterr().err
