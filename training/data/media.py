"""What a picture or a sound takes in a prompt, told by its header alone."""

import os
from io import BytesIO
from typing import Any

from PIL import Image

from encoders.tiling import Tiling
from mm_rwkv7.pictures import load_picture
from mm_rwkv7.sounds import resampled
from training.data.conversations import Media, Stored

TURNED = (5, 6, 7, 8)  # EXIF orientations with width and height exchanged
ORIENTATION = 0x0112


def at_hand(source: Media) -> Any:
    """The source as `Processor` reads it: what is inside a larger file is taken out."""
    return source.read() if isinstance(source, Stored) else source


def content(source: Any) -> Any:
    """The bytes of a picture's file, or the PIL image that it is."""
    if not isinstance(source, str | os.PathLike):
        return source
    try:
        with open(source, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError(f"{os.fspath(source)} cannot be read: {error.strerror}") from error


def tiles_of(source: Media, tiling: Tiling | None) -> int:
    """How many pictures the tower sees of one. ValueError where a file has no readable header."""
    if tiling is None:
        return 1
    source = at_hand(source)
    width, height = picture_size(BytesIO(source) if isinstance(source, bytes) else source)
    columns, rows = tiling.grid(width, height)
    return columns * rows + (tiling.thumbnail and columns * rows > 1)


def picture_size(source: Any) -> tuple[int, int]:
    """Width and height of a picture file or a PIL image as `load_picture` turns it upright."""
    if isinstance(source, Image.Image):
        return source.size
    try:
        with Image.open(source) as image:
            width, height = image.size
            turned = image.getexif().get(ORIENTATION) in TURNED
    except Exception:  # noqa: BLE001 Pillow raises errors of nearly any kind; load_picture says which in one line
        return load_picture(source.getvalue() if isinstance(source, BytesIO) else source).size
    return (height, width) if turned else (width, height)


def samples_of(source: Media, rate: int) -> int:
    """How many samples a sound has at `rate`. ValueError where a file has no readable header."""
    import soundfile

    source = at_hand(source)
    if isinstance(source, tuple):
        return resampled(len(source[0]), int(source[1]), rate)
    name = "the sound" if isinstance(source, bytes) else os.fspath(source)
    try:
        info = soundfile.info(BytesIO(source) if isinstance(source, bytes) else name)
    except (soundfile.SoundFileError, RuntimeError, TypeError) as error:
        raise ValueError(f"{name} is broken, missing or no sound: {error}") from error
    return resampled(info.frames, info.samplerate, rate)
