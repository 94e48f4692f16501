"""Small sound files for the readers' samples."""

from collections.abc import Iterable
from pathlib import Path

import soundfile

from tests.ears import RATE, noise


def write_sounds(folder: Path, names: Iterable[str], seconds: float = 0.3) -> None:
    """A file of noise under each name, each another one."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        soundfile.write(folder / name, noise(seconds, number).numpy(), RATE)


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
