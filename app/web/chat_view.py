"""A conversation as the page's components show it."""

import os
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from gradio.processing_utils import save_bytes_to_cache
from gradio.utils import get_upload_folder

from app.web.conversation import Figures, Medium, Turn
from mm_rwkv7.bench.memory import resident

WAITING = "…"
LESS = "&lt;"  # what people write is no HTML
ENDINGS = {"length": "cut at the limit", "cancelled": "stopped", "deadline": "out of time"}


def messages(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    """One for each picture, sound, text and answer: `turn_of` finds the turn again."""
    found = []
    for turn in turns:
        found += [{"role": "user", "content": _shown(medium)} for medium in turn.media]
        found += [{"role": "user", "content": turn.text.replace("<", LESS)}] if turn.text else []
        found.append({"role": "assistant", "content": turn.answer or WAITING})
    return found


def turn_of(turns: Sequence[Turn], index: int) -> int:
    """The number of the turn to which message `index` belongs. ValueError when there is no such message."""
    owners = [number for number, turn in enumerate(turns) for _ in messages([turn])]
    if not 0 <= index < len(owners):
        raise ValueError("there is no such message")
    return owners[index]


def reading(media: Sequence[Medium]) -> str:
    """What is done before an answer to these can begin."""
    kinds = [name for name, kind in (("picture", "image"), ("sound", "audio")) if kind in {one.kind for one in media}]
    what = f"the {kinds[0]}" if len(media) == 1 else f"{len(media)} {' and '.join(f'{kind}s' for kind in kinds)}"
    return f"Reading {what} …"


def describe(figures: Figures) -> str:
    """How fast an answer came, in one line."""
    parts = [f"first token after {figures.first_s:.2f} s"]
    if figures.ending:
        read = f"read {figures.read:,} tokens"
        if figures.read_s > 0:
            read += f", {figures.read / figures.read_s:,.0f} a second"
        if figures.encode_s > 0:
            read += f", encoded in {figures.encode_s:.2f} s"
        parts.append(read)
    wrote = f"{figures.written:,} token{'s' * (figures.written != 1)} written"
    parts.append(wrote if figures.written < 2 else f"{wrote}, {figures.per_s:,.0f} a second")
    if figures.ending:
        parts.append(f"state {figures.state_bytes / 1e6:.2f} MB")
    if (memory := resident()) is not None:
        parts.append(f"memory {memory / 1e6:,.0f} MB")
    if ending := ENDINGS.get(figures.ending):
        parts.append(ending)
    return " · ".join(parts)


def _shown(medium: Medium) -> dict[str, str] | str:
    what = "Picture" if medium.kind == "image" else "Sound"
    path = medium.path
    if not os.path.exists(path):  # uploads go after a while, and a restored conversation has none
        path = _preview(medium.preview, get_upload_folder()) if medium.preview else ""
    return {"path": path, "alt_text": f"{what}: {medium.name}"} if path else f"[{what}: {medium.name}]"


@lru_cache(256)
def _written(preview: bytes, folder: str) -> str:
    return save_bytes_to_cache(preview, "preview.png", folder)


def _preview(preview: bytes, folder: str) -> str:
    path = _written(preview, folder)
    if not os.path.exists(path):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_bytes(preview)
    return path
