"""Tables as files, each written whole or not at all."""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from mm_rwkv7.whole import replacing_file

FORMULA = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet runs begins with one of these


def write_csv(path: Path, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """UTF-8 with the mark by which spreadsheets know it. What would be a formula there has an apostrophe before it,
    which says that it is a text."""
    with _whole(path, "utf-8-sig") as file:
        writer = csv.writer(file)
        writer.writerow(headers)
        writer.writerows([_as_text(cell) for cell in row] for row in rows)


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """One object a line, as it is."""
    with _whole(path, "utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _as_text(cell: str) -> str:
    return f"'{cell}" if cell.lstrip(" \n").startswith(FORMULA) else cell


@contextmanager
def _whole(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Half a surrogate pair, which UTF-8 may not hold, is written as its escape."""
    with (
        replacing_file(path) as draft,
        draft.open("w", encoding=encoding, errors="backslashreplace", newline="") as file,
    ):
        yield file
