"""Reading official files, and writing our own. Every complaint names the file and the record, and, for a missing file,
where it is from.

>>> file = read_json(folder / "TextVQA_0.5.1_val.json", "https://textvqa.org/dataset")
>>> for record in file["data"].list():
...     record["question"].text(), record["answers"].texts(10)
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from eval.task import Sample, Source

T = TypeVar("T")


@dataclass(frozen=True)
class Record:
    """A value of a file that knows where it stands. Each method raises a ValueError that names the place where the
    value is not what it asks for."""

    where: str
    value: Any

    def __getitem__(self, name: str) -> "Record":
        """A field of an object."""
        if not isinstance(self.value, dict):
            raise self.error(f"expected an object with {name!r}, got {self._shown}")
        if name not in self.value:
            raise self.error(f"there is no {name!r}")
        return Record(f"{self.where}.{name}", self.value[name])

    def __contains__(self, name: str) -> bool:
        return isinstance(self.value, dict) and name in self.value

    def text(self) -> str:
        return self._whole(self._of(str, "a text"))

    def integer(self) -> int:
        return self._of(int, "a whole number")

    def number(self) -> float:
        return float(self._of((int, float), "a number"))

    def flag(self) -> bool:
        if not isinstance(self.value, bool):
            raise self.error(f"expected true or false, got {self._shown}")
        return self.value

    def name(self) -> str:
        """A text or a whole number, as text: what ids come as."""
        return self._whole(str(self._of((str, int), "a text or a whole number")))

    def list(self, length: int | None = None) -> "list[Record]":
        """The items of a list, of exactly `length` where that is given."""
        if not isinstance(self.value, list):
            raise self.error(f"expected a list, got {self._shown}")
        if length is not None and len(self.value) != length:
            raise self.error(f"expected {length} items, got {len(self.value)}")
        return [Record(f"{self.where}[{i}]", item) for i, item in enumerate(self.value)]

    def texts(self, length: int | None = None) -> tuple[str, ...]:
        """The items of a list of texts."""
        return tuple(item.text() for item in self.list(length))

    def items(self) -> "Iterator[tuple[str, Record]]":
        """The fields of an object."""
        if not isinstance(self.value, dict):
            raise self.error(f"expected an object, got {self._shown}")
        return ((name, Record(f"{self.where}.{name}", item)) for name, item in self.value.items())

    def error(self, message: str) -> ValueError:
        """A ValueError about this place, to be raised."""
        return ValueError(f"{self.where}: {message}")

    def _of(self, kind: Any, expected: str) -> Any:
        if isinstance(self.value, bool) or not isinstance(self.value, kind):
            raise self.error(f"expected {expected}, got {self._shown}")
        return self.value

    def _whole(self, text: str) -> str:
        """A text that can be written again: JSON's escapes can spell half a character."""
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise self.error(f"there is half a character (a surrogate) at {error.start} of {self._shown}") from error
        return text

    @property
    def _shown(self) -> str:
        return f"{self.value!r:.80}"


def read_json(path: Path, origin: str) -> Record:
    """A JSON file. `origin` says where it can be had."""
    return Record(str(path), _parse(read_text(path, origin), str(path)))


def read_jsonl(path: Path, origin: str) -> list[Record]:
    """A file with a JSON value a line; blank lines are passed over."""
    lines = enumerate(read_text(path, origin).split("\n"), start=1)
    named = ((f"{path}, line {number}", line) for number, line in lines if line.strip())
    return [Record(where, _parse(line, where)) for where, line in named]


def read_csv(path: Path, origin: str, columns: Sequence[str] | None = None, comment: str = "") -> list[Record]:
    """A CSV file, an object of texts a line, named by its first line, or by `columns` in a file that has no such line.
    Lines that begin with `comment` are passed over."""
    lines = read_text(path, origin).split("\n")  # and not where Unicode has more ends of line
    kept = [
        (n, line)
        for n, line in enumerate(lines, start=1)
        if line.strip() and not (comment and line.startswith(comment))
    ]
    try:
        rows = list(csv.reader((line for _, line in kept), skipinitialspace=True))
    except csv.Error as error:
        raise ValueError(f"{path} is no CSV table: {error}") from error
    if len(rows) != len(kept):
        raise ValueError(f"{path}: a quoted field goes over the end of its line")
    named = list(zip((number for number, _ in kept), rows, strict=True))
    if columns is None:
        if not named:
            raise ValueError(f"{path}: the file is empty, expected a line of column names")
        columns, named = named[0][1], named[1:]
    for number, row in named:
        if len(row) != len(columns):
            expected = f"{len(columns)} ({', '.join(columns)})"
            raise ValueError(f"{path}, line {number}: there are {len(row)} fields, expected {expected}")
    return [Record(f"{path}, line {number}", dict(zip(columns, row, strict=True))) for number, row in named]


def read_text(path: Path, origin: str) -> str:
    """The text of a UTF-8 file that is there and is no web page saved under its name."""
    if not path.is_file():
        raise ValueError(f"{path} is missing; it comes from {origin}")
    try:
        text = path.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text in UTF-8 ({error.reason} at byte {error.start})") from error
    if text[:200].lstrip().lower().startswith(("<!doctype", "<html", "<?xml")):
        raise ValueError(f"{path} is a web page, not the file itself; it comes from {origin}")
    return text


def unique(records: Iterable[Record], key: Callable[[Record], str]) -> dict[str, Record]:
    """Records by their key, in order. A ValueError names the second of two with one key."""
    found: dict[str, Record] = {}
    for record in records:
        name = key(record)
        if name in found:
            raise record.error(f"{name!r} was there before, at {found[name].where}")
        found[name] = record
    return found


def check_media(samples: Sequence[Sample]) -> None:
    """ValueError unless every picture and sound file of `samples` is there."""
    wanted: dict[Source, str] = {}  # by what asks about it first
    for sample in samples:
        for source in (*sample.images, *sample.sounds):
            wanted.setdefault(source, sample.id)
    missing = [path for path in wanted if isinstance(path, Path) and not path.is_file()]
    if missing:
        first = missing[0]
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ValueError(f"{first}{more} missing; the first is asked about in {wanted[first]!r}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not JSON: {error}") from error


def _object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(items)
    if len(found) != len(items):
        twice = Counter(name for name, _ in items).most_common(1)[0][0]
        raise ValueError(f"the name {twice!r} comes twice in one object")
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no number")
