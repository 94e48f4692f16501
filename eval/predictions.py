"""`predictions.jsonl`: an answer a line, written as they come, and found again after whatever ended the writing."""

import fcntl
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from eval.files import Record, read_jsonl, unique
from eval.task import Mode

NAME = "predictions.jsonl"
ORIGIN = "`eval run`, or from whoever made the predictions"


def shard_name(name: str, shard: tuple[int, int] | None) -> str:
    """A file's name in one run of several: predictions.0-of-2.jsonl in (0, 2), the first of two."""
    stem, _, kind = name.partition(".")
    return name if shard is None else f"{stem}.{shard[0]}-of-{shard[1]}.{kind}"


def line(fields: dict[str, Any]) -> str:
    """The fields as the file's line."""
    return json.dumps(fields, ensure_ascii=False, allow_nan=False) + "\n"


class Log:
    """Appends to a predictions file, after what is there of `ids`. Use it with `with`.

    `written` is how many lines there were; a torn last line is cut off. A ValueError says what is there that
    this run would not have written, or that another run is writing.
    """

    def __init__(self, path: Path, ids: Sequence[str]) -> None:
        self.path, self._ids = path, ids
        self._file: BinaryIO = path.open("a+b")
        try:
            self._lock()
            self.written = self._resume()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self._file.close()
        except OSError:  # what could not be written is tried once more
            if kind is None:
                raise

    def write(self, fields: dict[str, Any]) -> None:
        """One line, which is in the file when this returns. An OSError names the file, on a full disk for example."""
        assert fields["id"] == self._ids[self.written], f"{fields['id']!r} out of order"
        try:
            self._file.write(line(fields).encode())
            self._file.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error
        self.written += 1

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ValueError(f"{self.path}: another run is writing this file") from error

    def _resume(self) -> int:
        self._file.seek(0)
        whole, kept = 0, 0
        for found in self._file:
            if not found.endswith(b"\n"):
                break  # torn: the run ended in the middle of it
            where = f"{self.path}, line {kept + 1}"
            if kept == len(self._ids) or _id(found, where) != self._ids[kept]:
                expected = f"{self._ids[kept]!r}" if kept < len(self._ids) else "the end"
                raise ValueError(f"{where}: this run would have written {expected} here; take another --out")
            kept += 1
            whole += len(found)
        self._file.truncate(whole)
        return kept


def _id(line: bytes, where: str) -> str:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not JSON: {error}") from error
    return Record(where, value)["id"].name()


def read(path: Path, mode: Mode) -> dict[str, Any]:
    """The predictions of a file by id, each of the mode's type; duplicates are refused."""
    records = unique(read_jsonl(path, ORIGIN), lambda record: record["id"].name())
    return {name: _prediction(record["prediction"], mode) for name, record in records.items()}


def _prediction(record: Record, mode: Mode) -> Any:
    if mode is Mode.GENERATE:
        return record.text()
    numbers = [item.number() for item in record.list()]
    if not all(map(math.isfinite, numbers)):
        raise record.error("expected finite numbers")
    return numbers


def check_ids(path: Path, predicted: Iterable[str], ids: Sequence[str], partial: bool) -> None:
    """ValueError unless the ids predicted are those of the task, or, if `partial`, some of them."""
    predicted, known = set(predicted), set(ids)
    if unknown := sorted(predicted - known):
        raise ValueError(f"{path}: {len(unknown)} ids are not of this task: {_some(unknown)}")
    if not predicted:
        raise ValueError(f"{path}: there are no predictions")
    missing = [name for name in ids if name not in predicted]
    if missing and not partial:
        raise ValueError(f"{path}: {len(missing)} of {len(ids)} predictions are missing: {_some(missing)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
