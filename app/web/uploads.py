"""What visitors send: told apart by content, checked before it is decoded, read before anything is said about it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL.Image import Image

from app.media import is_sound, read_medium
from app.web.conversation import Medium
from app.web.saved import preview_of

MOST = 32  # of one message
PIXELS = 64_000_000  # of all its pictures: they are held decoded until they are read
SOUND_S = 3600.0


class Unreadable(ValueError):  # noqa: N818 - of files
    """Some files cannot be read; `others` can."""

    def __init__(self, refused: Mapping[str, ValueError], others: Sequence[str]) -> None:
        super().__init__("; ".join(map(str, refused.values())))
        self.others = list(others)


def announced(paths: Sequence[str]) -> list[Medium]:
    """What these files seem to be by their first bytes: nothing is decoded. ValueError for too many."""
    if len(paths) > MOST:
        raise ValueError(f"there are {len(paths)} pictures and sounds, expected at most {MOST}")
    return [Medium(_kind(path), Path(path).name, path, content=path) for path in paths]


def read_uploads(paths: Sequence[str]) -> list[Medium]:
    """The pictures and sounds of these files, in order. `Unreadable` names the files that are neither, broken or too
    large; ValueError says what is wrong with all of them together."""
    media: list[Medium] = []
    refused: dict[str, ValueError] = {}
    pixels = 0
    for path in (one.path for one in announced(paths)):
        try:
            media.append(_read(path))
        except ValueError as error:
            refused[path] = error
            continue
        if isinstance(picture := media[-1].content, Image):
            pixels += picture.width * picture.height
        if pixels > PIXELS:
            raise ValueError(f"the pictures have more than {PIXELS:,} pixels together, send some of them later")
    if refused:
        raise Unreadable(refused, [path for path in paths if path not in refused])
    return media


def part_of(path: str) -> dict[str, Any]:
    """A file as a message holds it, not read yet: what reads it says what is wrong with it. ValueError for too long a
    sound."""
    kind = _kind(path)
    if kind == "audio":
        check_length(path)
    return {"type": kind, kind: path}


def _read(path: str) -> Medium:
    name = Path(path).name
    check_length(path)
    part = read_medium(path)
    if part["type"] == "audio":
        return Medium("audio", name, path, content=path)
    return Medium("image", name, path, preview_of(part["image"]), part["image"])


def _kind(path: str) -> str:
    return "audio" if is_sound(path) or _seconds(path) is not None else "image"


def check_length(path: str) -> None:
    """ValueError for too long a sound. What cannot be opened is left to the reader, which says what is wrong."""
    seconds = _seconds(path)
    if seconds is not None and seconds > SOUND_S:  # no more samples are read than the header announces
        raise ValueError(f"{path} is longer than {SOUND_S:g} s, or of unknown length")


def _seconds(path: str) -> float | None:
    """How long a sound is by its header, None for what is none."""
    import soundfile

    try:
        with soundfile.SoundFile(path) as opened:
            return float(opened.frames / opened.samplerate)
    except (soundfile.SoundFileError, RuntimeError, TypeError, ZeroDivisionError):
        return None
