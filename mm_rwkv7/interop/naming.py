"""Which files hold one model together, told by their names and by an index."""

import json
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"
SHARD = re.compile(r".+-\d+-of-\d+\.safetensors")
HALVES = ("_rwkv.pth", "_visual.pth")  # of a VisualRWKV as its project exports it
CONFIG = "config.json"
MOST = 12  # files that an error names
PILE_TOKENIZERS = ("20B_tokenizer.json", "tokenizer.json")


def one_model(where: object, names: Collection[str]) -> list[str]:
    """Out of all files of a folder those that hold its model: one file, an index, which lists its shards, or both
    halves of an export. A ValueError says that there is none, or names several."""
    found = sorted(name for name in names if name.endswith((".safetensors", ".pth")))
    if INDEX in names:
        found = [INDEX, *(name for name in found if not SHARD.fullmatch(name))]
    found = found or sorted(name for name in names if name.endswith(".bin"))
    if not found and CONFIG in names:
        raise ValueError(f"{where} is not a whole checkpoint: model.safetensors is missing")
    if not found:
        raise ValueError(f"{where} holds no model: it has no .safetensors, .pth or .bin file")
    if len(found) > 1 and found[1:] != [other_half(found[0])]:
        listed = ", ".join(f"{where}/{name}" for name in found[:MOST]) + (", ..." if len(found) > MOST else "")
        raise ValueError(f"{where} holds {len(found)} models, name one of them: {listed}")
    return found


def other_half(name: str) -> str | None:
    """The file that makes an exported VisualRWKV whole together with `name`; None for any other file."""
    for half, other in (HALVES, HALVES[::-1]):
        if name.endswith(half):
            return name.removesuffix(half) + other
    return None


def shards(index: Path) -> list[str]:
    """The files that an index lists, all of them beside it."""
    named = read_object(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"{index} has no weight_map from names to files")
    if outside := sorted({name for name in named.values() if Path(name).name != name}):
        raise ValueError(f"{index} names {outside[0]!r}, expected files beside it")
    return sorted(set(named.values()))


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds {type(value).__name__}, expected an object")
    return value
