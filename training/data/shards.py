"""webdataset's tar shards: files that lie together under one key (`0001.json`, `0001.jpg`) are one sample.

The format is read by many tools; reading it here gives a sample by its number and takes up exactly where it stopped.
"""

import json
import os
import re
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from training.data.conversations import Conversation, Indexed
from training.data.records import messages_of

INDEX = "index.json"  # beside the shards: how many samples there are in each, and its size in bytes
PICTURES = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "ppm", "avif"))
SOUNDS = frozenset(("wav", "flac", "ogg", "mp3"))
KEPT = 4  # tables of shards that are kept

Table = list[tuple[str, dict[str, "Member"]]]  # a shard's samples: key, members by what follows the key


@dataclass(frozen=True)
class Member:
    """A file inside a shard."""

    path: Path
    offset: int
    size: int

    def read(self) -> bytes:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(self.size)
        except OSError as error:
            raise ValueError(f"{self.path} cannot be read: {error.strerror}") from error
        if len(data) != self.size:
            raise ValueError(f"{self.path} is cut short or has changed")
        return data


class Shards(Indexed):
    """The shards `paths`, one block each. A sample is a `.json` record (`records` has the layouts) or a `.txt`
    caption, or both, with its pictures and sounds in the order of their names (`key.jpg`, or `key.0.jpg`, `key.1.jpg`).

    How many samples a shard has is taken from `index.json` beside it, which `python -m training prepare` writes;
    without it the shard is gone through. A ValueError names a file that is missing or no tar.
    """

    def __init__(self, paths: Sequence[str | os.PathLike[str]], name: str) -> None:
        self.paths = [Path(path) for path in paths]
        self.name = name
        self._table = lru_cache(KEPT)(_read_table)
        indices = {folder: _index(folder) for folder in {path.parent for path in self.paths}}
        self._sizes = [self._count(path, indices[path.parent]) for path in self.paths]

    def _count(self, path: Path, index: Mapping[str, Any]) -> int:
        known = index.get(path.name)
        if known is not None and path.is_file() and path.stat().st_size == known["bytes"]:
            return int(known["samples"])
        return len(self._table(path))

    @property
    def blocks(self) -> Sequence[int]:
        return self._sizes

    def label(self, block: int, item: int) -> str:
        path = self.paths[block]
        table = self._table(path)
        return f"{path.name}, {table[item][0] if item < len(table) else item}"

    def get(self, block: int, item: int) -> Conversation:
        table = self._table(self.paths[block])
        if len(table) != self._sizes[block]:
            raise ValueError(f"the shard has {len(table)} samples, {INDEX} says {self._sizes[block]}: it is of others")
        key, members = table[item]
        kinds = {name: name.rpartition(".")[2].lower() for name in sorted(members, key=_natural)}
        record: dict[str, Any] = {}
        if "json" in members:
            try:
                record = json.loads(members["json"].read())
            except ValueError as error:
                raise ValueError(f"its .json is no JSON: {error}") from error
            if not isinstance(record, dict):
                raise ValueError("its .json is no object")
        if "txt" in members:  # the words, unless the .json has some
            record.setdefault("caption", members["txt"].read().decode(errors="replace").strip())
        record = {name: value for name, value in record.items() if name not in ("images", "audios")}
        record["image"] = [members[name] for name, kind in kinds.items() if kind in PICTURES]
        record["audio"] = [members[name] for name, kind in kinds.items() if kind in SOUNDS]
        return Conversation(f"{self.paths[block].name}, {key}", messages_of(record, lambda member: member), self.name)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / INDEX
    if not path.is_file():
        return {}
    try:
        index = json.loads(path.read_text(encoding="utf-8"))
        return dict(index["shards"])
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{path} is no index of shards: {error}") from error


def _read_table(path: Path) -> Table:
    table: Table = []
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                stem, dot, suffix = name.partition(".")
                if not member.isfile() or not stem or not dot:
                    continue
                key = folder + slash + stem
                if not table or table[-1][0] != key:
                    table.append((key, {}))
                table[-1][1][suffix] = Member(path, member.offset_data, member.size)
                tar.members = []  # type: ignore[attr-defined] # it would keep them all
    except FileNotFoundError as error:
        raise ValueError(f"{path}: there is no such file") from error
    except (tarfile.TarError, OSError) as error:
        raise ValueError(f"{path} is no whole tar file: {error}") from error
    return table


def _natural(name: str) -> list[tuple[int, str]]:
    """`10.jpg` after `9.jpg`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
