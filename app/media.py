"""Media files of a command line, told apart by their content and checked before any model is loaded."""

import os
import shlex
from collections.abc import Sequence
from typing import Any

from PIL import UnidentifiedImageError
from PIL.Image import Image

from mm_rwkv7.pictures import load_picture

Part = dict[str, Any]  # a picture or a sound, as a message holds it


def question_and_media(inputs: Sequence[str]) -> tuple[str, list[Part]]:
    """The last of `inputs` is the question, the others are media files, which are read. A question about a sound may be
    empty: some models answer what is said in it."""
    if not inputs:
        raise ValueError("there is no question; expected: mm-rwkv7 ask [MEDIA]... QUESTION")
    *media, question = inputs
    if not question.strip() and not any(map(is_sound, media)):  # with one, it is for the model to say
        raise ValueError("the question is empty")
    if os.path.isfile(question):
        asked = next((medium for medium in media if not os.path.exists(medium)), None)
        if asked is None or not ("?" in asked or " " in asked):  # a name that was mistyped
            raise ValueError(f"the question is missing: {question} is a file, and the question comes last")
        files = " ".join(shlex.quote(file) for file in inputs if file is not asked)
        raise ValueError(f"the question comes last; expected: mm-rwkv7 ask {files} {shlex.quote(asked)}")
    return question, [read_medium(path) for path in media]


def user_message(question: str, media: Sequence[Part] = ()) -> list[dict[str, Any]]:
    """One user message: the media as they come, then the question."""
    return [{"role": "user", "content": [*media, {"type": "text", "text": question}]}]


def read_medium(path: str) -> Part:
    """The picture or the sound of a file; a ValueError names it when it is neither, or not whole."""
    if is_sound(path):
        return read_sound(path)
    try:
        return {"type": "image", "image": load_picture(path)}
    except ValueError as error:
        if not isinstance(error.__cause__, UnidentifiedImageError):
            raise
    try:  # a sound whose first bytes say nothing
        return read_sound(path)
    except ValueError as error:
        raise ValueError(f"{path} is neither a picture nor a sound, or not of a known format") from error


def read_picture(path: str) -> Image:
    """The picture of a file; a ValueError names it when it is no whole picture."""
    if is_sound(path):
        raise ValueError(f"{path} is a sound, expected a picture")
    return load_picture(path)


def is_sound(path: str) -> bool:
    """Whether a file begins as WAV, FLAC, Ogg or MP3 files do; False for one that cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(12)
    except OSError:
        return False
    is_wave = head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE"
    is_mp3 = len(head) > 1 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2  # a frame's sync, layer III
    return is_wave or is_mp3 or head.startswith((b"fLaC", b"OggS", b"ID3"))


def read_sound(path: str) -> Part:
    """The path of a sound, which is checked and not held; a ValueError names it when it is no whole sound."""
    from mm_rwkv7.sounds import check_sound

    check_sound(path)
    return {"type": "audio", "audio": path}
