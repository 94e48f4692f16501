"""Media files of a command line, told apart by their content and checked before any model is loaded."""

import os
from collections.abc import Sequence

from PIL.Image import Image

from mm_rwkv7.pictures import load_picture


def question_and_pictures(inputs: Sequence[str]) -> tuple[str, list[Image]]:
    """The last of `inputs` is the question, the others are media files, which are read."""
    if not inputs:
        raise ValueError("there is no question; expected: mm-rwkv7 ask [MEDIA]... QUESTION")
    *media, question = inputs
    if not question.strip():
        raise ValueError("the question is empty")
    if os.path.isfile(question):
        raise ValueError(f"the question is missing: {question} is a file, and the question comes last")
    return question, [read_picture(path) for path in media]


def read_picture(path: str | os.PathLike[str]) -> Image:
    """The picture of a file; a ValueError names it when it is no whole picture."""
    if is_sound(path):
        raise ValueError(f"{os.fspath(path)} is a sound, and this model has no sound encoder, it cannot hear")
    return load_picture(path)


def is_sound(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins as WAV, FLAC, Ogg or MP3 files do; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    is_wave = head[:4] == b"RIFF" and head[8:] == b"WAVE"
    is_mp3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2  # a frame's sync, layer III
    return is_wave or is_mp3 or head.startswith((b"fLaC", b"OggS", b"ID3"))
