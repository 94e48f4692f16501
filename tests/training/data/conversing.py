"""Records for the readers' tests, pictures and sounds for them, and what a reader must give."""

import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from training.data.conversations import Conversation, Fault, Stored

WORDS = ["one", "red", "square,", "twø", "blue", "dots\nand", "a", "tiny", "€", "sign"]


def picture_bytes(rng: random.Random, kind: str = "PNG") -> bytes:
    size = rng.randint(20, 60), rng.randint(20, 60)
    image = Image.new("RGB", size, tuple(rng.randrange(256) for _ in range(3)))
    image.putpixel((3, 4), (rng.randrange(256), 0, 0))
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def sound_bytes(rng: random.Random) -> bytes:
    file = io.BytesIO()
    samples = np.random.default_rng(rng.randrange(2**31)).normal(0, 0.1, rng.randint(4000, 40_000))
    soundfile.write(file, samples, rng.choice([8000, 16_000, 22_050]), format="WAV")
    return file.getvalue()


def words(rng: random.Random, most: int = 6) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(1, most)))


def record(rng: random.Random, number: int, folder: Path, sounds: bool = False) -> dict[str, Any]:
    """A LLaVA record of one to three turns with none to two pictures (or sounds), which are written to `folder`. With
    `sounds` the record number 0 has at least one."""
    heard = sounds and (rng.random() < 0.4 or number == 0)
    kind, ending, make = ("audio", "wav", sound_bytes) if heard else ("image", "png", picture_bytes)
    names = [f"{number}-{i}.{ending}" for i in range(max(rng.randrange(3), heard and number == 0))]
    for name in names:
        (folder / name).write_bytes(make(rng))
    turns = []
    for turn in range(rng.randint(1, 3)):
        said = words(rng)
        if turn == 0:
            said = "".join(f"<{kind}>\n" for _ in names) + said
        turns += [{"from": "human", "value": said}, {"from": "gpt", "value": words(rng)}]
    media = {kind: names[0] if len(names) == 1 else names} if names else {}
    return {"id": f"r{number}", "conversations": turns, **media}


def write_llava(folder: Path, seed: int, count: int = 12, sounds: bool = False) -> tuple[Path, list[dict[str, Any]]]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = random.Random(seed)
    records = [record(rng, number, folder, sounds) for number in range(count)]
    path = folder / "data.json"
    path.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
    return path, records


def plain(conversation: Conversation | Fault) -> Any:
    """Messages with the bytes of their pictures and sounds, so that readers of other files can be compared."""
    assert isinstance(conversation, Conversation), str(conversation)
    return [
        (message["role"], [_part(part) for part in message["content"]])
        if isinstance(message["content"], list)
        else (message["role"], message["content"])
        for message in conversation.messages
    ]


def _part(part: dict[str, Any]) -> Any:
    source = part[part["type"]]
    if isinstance(source, Stored):
        source = source.read()
    return part["type"], source.read_bytes() if isinstance(source, Path) and part["type"] != "text" else source
