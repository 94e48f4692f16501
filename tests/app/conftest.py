import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import soundfile
from PIL import Image

from tests.ears import RATE, noise

STEP = 0.02  # seconds a token of the slow page takes, however fast the machine is


@pytest.fixture(scope="session", autouse=True)
def _uploads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Uploads lie in a folder of this run: a page that closes takes its own away, whoever else shows them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("uploads")))
        yield


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pictures")
    paths = {name: folder / f"{name}.png" for name in ("red", "blue")}
    for name, path in paths.items():
        Image.new("RGB", (40, 40), name).save(path)
    return paths


@pytest.fixture(scope="module")
def pipeline(tiny_model: Any) -> Any:
    """What a module's server runs; a module that needs another one has a fixture of this name."""
    from mm_rwkv7.pipeline import Pipeline

    return Pipeline(tiny_model, "tiny")


@pytest.fixture(scope="module")
def url(pipeline: Any) -> Iterator[str]:
    """The address of a server with four slots."""
    from app.engine import Engine, EngineConfig
    from tests.app.servers import served

    with Engine(pipeline, EngineConfig(slots=4)) as engine, served(engine) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Any:
    """OpenAI's own, of that server."""
    from tests.app.servers import client_of

    return client_of(url)


@dataclass
class SlowPage:
    """A page whose whole answers take 12 seconds, since its `pace` is waited for before every token, and the tokens
    that it has written."""

    url: str
    engine: Any
    tokens: int = 0
    pace: Callable[[], None] = lambda: time.sleep(STEP)


@contextmanager
def _served(model: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The address of a model's page, served from this process, and its engine."""
    from app.engine import Engine
    from mm_rwkv7.pipeline import Pipeline
    from tests.app.servers import page_of

    with Engine(Pipeline(model, name)) as engine, page_of(engine) as url:
        yield url, engine


@pytest.fixture(scope="module")
def slow_page(endless_model: Any) -> Iterator[SlowPage]:
    from app import engine

    choose = engine.choose

    def slowly(logits: Any, samplers: Any) -> Any:
        served.pace()
        served.tokens += len(samplers)
        return choose(logits, samplers)

    with pytest.MonkeyPatch.context() as patch, _served(endless_model, "endless") as (url, its_engine):
        served = SlowPage(url, its_engine)
        patch.setattr(engine, "choose", slowly)
        yield served


@pytest.fixture
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines take a while over each token: without it a long answer is over before a test has stopped it."""
    from app import engine

    choose = engine.choose

    def slowly(logits: Any, samplers: Any) -> Any:
        time.sleep(0.003)
        return choose(logits, samplers)

    monkeypatch.setattr(engine, "choose", slowly)


@pytest.fixture(scope="module")
def listening_page(listening_model: Any) -> Iterator[str]:
    """The address of a page whose model hears."""
    with _served(listening_model, "listener") as (url, _):
        yield url


@pytest.fixture(scope="session")
def wave(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of noise."""
    path = tmp_path_factory.mktemp("sounds") / "noise.wav"
    soundfile.write(path, noise(1.0).numpy(), RATE, subtype="FLOAT")
    return path
