"""Files that say they are saved conversations: whatever is wrong with one is told in one line, and nothing else
happens."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load as tensors_of
from safetensors.torch import save as file_of
from torch import Tensor

from app.engine import Engine, EngineConfig
from app.state_files import dump
from app.web.conversation import Conversation
from app.web.saved import restore, save
from app.web.shelf import Shelf
from app.web.uploads import read_uploads
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.sampling import Sampling

File = tuple[dict[str, Tensor], dict[str, str]]


@pytest.fixture(scope="module")
def engine(tiny_model: Any) -> Iterator[Engine]:
    with Engine(Pipeline(tiny_model, "tiny"), EngineConfig(slots=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def saved(engine: Engine, pictures: dict[str, Path]) -> bytes:
    shelf = Shelf(1 << 28)
    conversation = Conversation(engine, shelf)
    for text, media in (("What?", read_uploads([str(pictures["red"])])), ("Where?", [])):
        list(conversation.ask(text, media, Sampling()))
    return save(conversation.turns, shelf, engine.pipeline)


def _opened(data: bytes) -> File:
    size = int.from_bytes(data[:8], "little")
    return tensors_of(data), json.loads(data[8 : 8 + size])["__metadata__"]


def _transcript(change: Callable[[list[Any]], Any]) -> Callable[[File], File]:
    def changed(file: File) -> File:
        tensors, metadata = file
        transcript = json.loads(metadata["transcript"])
        return tensors, metadata | {"transcript": json.dumps(change(transcript) or transcript)}

    return changed


def _blob(name: str, data: bytes) -> Callable[[File], File]:
    return lambda file: (file[0] | {name: torch.frombuffer(bytearray(data), dtype=torch.uint8)}, file[1])


def _picture(side: int, form: str) -> bytes:
    buffer = BytesIO()
    Image.new("RGB", (side, side)).save(buffer, form)
    return buffer.getvalue()


def _set(*path: Any, value: Any) -> Callable[[list[Any]], None]:
    def change(transcript: list[Any]) -> None:
        *way, last = path
        place: Any = transcript
        for step in way:
            place = place[step]
        place[last] = value

    return change


HOSTILE: dict[str, Callable[[File], File]] = {
    "another format": lambda file: (file[0], file[1] | {"format": "mm-rwkv7-state/1"}),
    "another model": lambda file: (file[0], file[1] | {"model": "0" * 64}),
    "no transcript": lambda file: (file[0], {k: v for k, v in file[1].items() if k != "transcript"}),
    "no JSON": lambda file: (file[0], file[1] | {"transcript": "{"}),
    "too deep": lambda file: (file[0], file[1] | {"transcript": "[" * 100_000}),
    "no list": _transcript(lambda _: {"a": 1}),
    "too long": _transcript(lambda turns: turns * 10_000),
    "a turn that is none": _transcript(_set(0, value=7)),
    "no text": _transcript(_set(0, "text", value=None)),
    "an answer of numbers": _transcript(_set(1, "answer", value=[1])),
    "half a character": _transcript(_set(0, "text", value="\ud800")),
    "another kind": _transcript(_set(0, "media", 0, "kind", value="video")),
    "a name that is none": _transcript(_set(0, "media", 0, "name", value=3)),
    "a preview that is not there": _transcript(_set(0, "media", 0, "preview", value="7")),
    "a preview by a path": _transcript(_set(0, "media", 0, "preview", value="/etc/passwd")),
    "a state that is not there": _transcript(_set(1, "states", "after", value=99)),
    "a state by a name": _transcript(_set(1, "states", "after", value="0")),
    "a state that is a preview": _blob("states.0", _picture(8, "PNG")),
    "half a state": lambda file: _blob("states.0", bytes(file[0]["states.0"][:999].numpy()))(file),
    "a large preview": _blob("previews.0", _picture(300, "PNG")),
    "a preview of another kind": _blob("previews.0", _picture(8, "JPEG")),
    "too many pictures of a turn": _transcript(lambda turns: [turns[0] | {"media": turns[0]["media"] * 40}]),
    "too many previews": lambda file: (
        file[0] | {f"previews.{i}": file[0]["previews.0"].clone() for i in range(70)},
        file[1],
    ),
    "a preview with more behind it": _blob("previews.0", _picture(8, "PNG") + bytes(1 << 20)),
    "a preview numbered without end": _transcript(_set(0, "media", 0, "preview", value=float("inf"))),
    "floats": lambda file: (file[0] | {"previews.0": torch.zeros(4)}, file[1]),
    "NaN": lambda file: file,  # made below
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(engine: Engine, saved: bytes, name: str) -> None:
    tensors, metadata = HOSTILE[name](_opened(saved))
    if name == "NaN":
        state = engine.pipeline.prefill([{"role": "user", "content": "What?"}])
        state.layers[0].wkv[0, 0, 0, 0] = torch.nan
        tensors, metadata = _blob("states.0", dump(state))((tensors, metadata))
    with pytest.raises(ValueError, match=r"conversation|file") as error:
        restore(file_of(tensors, metadata), Shelf(1 << 28), engine.pipeline)
    said = str(error.value)
    assert "\n" not in said
    assert "/tmp" not in said
    assert len(said) < 300


def test_a_damaged_file_is_refused_or_harmless(engine: Engine, saved: bytes, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(60):
        data = bytearray(saved)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(min(len(data), rng.choice([64, 2000, len(data)])))] = rng.randrange(256)
        data = data[: rng.choice([len(data), len(data), rng.randrange(len(data))])]
        with suppress(ValueError):
            turns = restore(bytes(data), Shelf(1 << 28), engine.pipeline)
            assert [turn.answer.encode() for turn in turns], f"seed {seed}"


@pytest.mark.parametrize("data", [b"", b"text", b"\xff" * 100, bytes(8), _picture(8, "PNG")])
def test_what_is_no_such_file_at_all_is_refused(engine: Engine, data: bytes) -> None:
    with pytest.raises(ValueError, match="no saved conversation"):
        restore(data, Shelf(1 << 28), engine.pipeline)


def test_a_huge_file_is_refused_before_it_is_opened(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.web.saved.LARGEST", 100)
    with pytest.raises(ValueError, match="takes at most"):
        restore(bytes(1 << 26), Shelf(1 << 28), engine.pipeline)
