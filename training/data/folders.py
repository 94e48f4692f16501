"""A folder of pictures and sounds that somebody described."""

import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from training.data.conversations import Conversation, Indexed
from training.data.records import messages_of
from training.data.shards import PICTURES, SOUNDS

TABLES = ("captions.json", "metadata.jsonl", "metadata.json")


class PictureFolder(Indexed):
    """Pictures and sounds below `path`, each with its caption in a `.txt` of its name, or all in one table:
    `captions.json` or `metadata.jsonl` with `{"file" or "file_name": ..., "caption", "text" or "captions": ...}`, or
    one object `{file: caption or captions}`. A file with several captions is several conversations.

    A ValueError names a folder without any, or a table that cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = os.fspath(path)
        table = next((self.path / name for name in TABLES if (self.path / name).is_file()), None)
        try:
            self._pairs = list(self._beside() if table is None else _told(table))
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{table or path} is no table of captions: {error!r:.120}") from error
        if not self._pairs:
            raise ValueError(
                f"{path} has no picture or sound with a caption (a .txt of its name, or all in one of "
                f"{', '.join(TABLES)}), and no .tar or .parquet file"
            )

    def _beside(self) -> Iterator[tuple[str, str | None]]:
        for file in sorted(self.path.rglob("*")):
            if file.suffix.lower().lstrip(".") in PICTURES | SOUNDS and file.with_suffix(".txt").is_file():
                yield os.fspath(file.relative_to(self.path)), None

    @property
    def blocks(self) -> Sequence[int]:
        return (len(self._pairs),)

    def label(self, block: int, item: int) -> str:
        return f"{item} ({self._pairs[item][0]})"

    def get(self, block: int, item: int) -> Conversation:
        name, caption = self._pairs[item]
        file = self.path / name
        if caption is None:
            caption = file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace").strip()
        kind = "audio" if file.suffix.lower().lstrip(".") in SOUNDS else "image"
        messages = messages_of({kind: name, "caption": caption}, lambda entry: self.path / entry)
        return Conversation(self.label(block, item), messages, self.name)


def _told(table: Path) -> Iterator[tuple[str, str]]:
    text = table.read_text(encoding="utf-8")
    rows: Any = [json.loads(line) for line in text.splitlines() if line.strip()] if table.suffix == ".jsonl" else None
    rows = json.loads(text) if rows is None else rows
    if isinstance(rows, dict):
        rows = [{"file": name, "captions": captions} for name, captions in rows.items()]
    for row in rows:
        told = next((row[key] for key in ("captions", "caption", "text") if key in row), None)
        captions = [told] if isinstance(told, str) else told
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise ValueError(f"{row!r:.60} has no caption")
        name = row["file"] if "file" in row else row["file_name"]
        yield from ((name, caption.strip()) for caption in captions)
