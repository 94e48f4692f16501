"""A request as the model reads it: ids, the media among them, and the places where a state may be known or kept.

A place's key is a digest of everything that was read up to there: ids, and for a picture or a sound the digest of its
content. So a key is met again by the very same beginning and by nothing else.
"""

import hashlib
import os
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from app.media_encoder import MediaEncoder, Medium
from app.requests import Request
from app.state_cache import KEY_BYTES
from encoders.protocol import Pixels
from mm_rwkv7.generate import END_OF_TURN
from mm_rwkv7.hearing import Heard
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.processor import Clip, Picture
from mm_rwkv7.sounds import Sound


@dataclass(frozen=True)
class Place:
    """So many ids into a prompt. `kept`: reading pauses here, and the state is kept for other requests."""

    position: int
    key: bytes
    kept: bool = False


@dataclass(frozen=True)
class Prompt:
    """`places` are in order, the last one the prompt's end; there are none after a given state, of which nobody knows
    what it has read. `said` goes on with the digest of all of it. `open_turn` as in `Batch`."""

    ids: list[int]
    media: tuple[Medium, ...]
    places: tuple[Place, ...]
    said: "Said"
    open_turn: bool

    @property
    def media_tokens(self) -> int:
        return sum(medium.count for medium in self.media)


class Said:
    """The digest of what has been read."""

    def __init__(self) -> None:
        self._digest = hashlib.blake2b(digest_size=KEY_BYTES)

    def read(self, ids: Sequence[int]) -> None:
        self._digest.update(array("q", ids).tobytes())

    def see(self, medium: bytes) -> None:
        self._digest.update(array("q", [-1]).tobytes() + medium)  # no id is negative

    @property
    def key(self) -> bytes:
        return self._digest.digest()

    def copy(self) -> "Said":
        other = Said()
        other._digest = self._digest.copy()
        return other


def prepare(pipeline: Pipeline, encoder: MediaEncoder, request: Request) -> Prompt:
    """The request's prompt, its media read and decoded unless their features are known. ValueError for bad input."""
    if request.text is not None:
        ids = text_ids(pipeline, request.text)
        return _join(pipeline, [[ids]], request)
    state = request.state
    open_turn = state is not None and state.open_turn
    segments = pipeline.processor.segments(request.messages, request.write, open_turn)
    pieces: list[list[int] | Medium] = []
    for segment in segments:
        if isinstance(segment, Picture | Clip):
            pieces.append(_medium(pipeline, encoder, segment))
        else:
            pieces.append(pipeline.tokenizer.encode(segment))
    alone = open_turn and len(request.messages) == 1
    last = len(pipeline.processor.segments(request.messages[-1:], request.write, alone))
    turns = [pieces[:-last], pieces[-last:]]
    return _join(pipeline, turns, request)


def text_ids(pipeline: Pipeline, text: str | Sequence[int]) -> list[int]:
    """The ids of a text, or ids that were given, which may be any that an answer may hold. ValueError for none."""
    tokenizer = pipeline.tokenizer
    ids = tokenizer.encode(text) if isinstance(text, str) else list(text)
    if not ids:
        raise ValueError("the text is empty, expected some words or tokens")
    for wrong in (i for i in ids if not 0 <= i < tokenizer.size or i in tokenizer.unwritable):
        raise ValueError(f"{wrong} is no token of a text, expected 0 to {tokenizer.size - 1} without placeholders")
    return ids


def _join(pipeline: Pipeline, turns: Sequence[Sequence[list[int] | Medium]], request: Request) -> Prompt:
    """The pieces one after another. States are kept after each medium and before the last turn, where several requests
    are likely to part."""
    ids: list[int] = []
    media, said = [], Said()
    places: dict[int, Place] = {}
    total = sum(len(piece.ids if isinstance(piece, Medium) else piece) for turn in turns for piece in turn)
    if pipeline.pad_compat and request.state is None:
        ids = [END_OF_TURN] * (-total % 16)
        said.read(ids)
    for turn in turns:
        if ids:
            places[len(ids)] = Place(len(ids), said.key, True)
        for piece in turn:
            if isinstance(piece, Medium):
                media.append(piece.at(len(ids)))
                ids += piece.ids
                said.see(piece.key)
            else:
                ids += piece
                said.read(piece)
            places[len(ids)] = Place(len(ids), said.key, isinstance(piece, Medium))
    if not ids:
        raise ValueError("there is nothing to read")
    end = Place(len(ids), said.key, True)
    places[len(ids)] = end
    known = tuple(places.values()) if request.state is None else ()
    open_turn = bool(turns[-1]) and isinstance(turns[-1][-1], Medium) and not request.write
    return Prompt(ids, tuple(media), known, said, open_turn)


def _medium(pipeline: Pipeline, encoder: MediaEncoder, found: Picture | Clip) -> Medium:
    processor = pipeline.processor
    if isinstance(found.source, Heard):
        raise ValueError("the sound is encoded already, expected the sound itself: the engine encodes it")
    kind = "image" if isinstance(found, Picture) else "audio"
    key = content_key(kind, found.source)
    content: Pixels | Sound | None
    if (known := encoder.find(key)) is not None:  # it need not be decoded
        content, size = None, known.size
    elif isinstance(found, Clip):
        content = processor.sound(found.source)
        size = content.samples
    else:
        content = processor.pixels(found.source)
        size = len(content) if isinstance(content, Tensor) else len(content[0])
    if isinstance(found, Clip):
        ids, placeholder = processor.sound_placeholders(size), processor.tokenizer.audio_id
    else:
        ids, placeholder = processor.placeholders(size), processor.tokenizer.image_id
    return Medium(kind, key, ids, ids.index(placeholder), ids.count(placeholder), size, content, known)


def content_key(kind: str, source: Any) -> bytes:
    """A digest of what a file, bytes, a picture or a waveform holds. A file that cannot be read has one too: who
    decodes it says what is wrong."""
    digest = hashlib.blake2b(kind.encode(), digest_size=KEY_BYTES)
    if isinstance(source, bytes):
        digest.update(b"file" + source)
    elif isinstance(source, Image.Image):
        digest.update(f"picture {source.mode} {source.size} {source.info.get('transparency')!r}".encode())
        digest.update(source.getexif().tobytes() + bytes(source.getpalette() or ()) + source.tobytes())
    elif isinstance(source, tuple) and len(source) == 2:
        samples = np.ascontiguousarray(source[0])
        digest.update(f"waveform {samples.dtype} {samples.shape} {source[1]!r}".encode())
        digest.update(samples.tobytes())
    else:
        digest.update(b"file")
        try:
            with open(os.fspath(source), "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        except (OSError, TypeError, ValueError):
            digest.update(b"unreadable" + repr(source).encode())
    return digest.digest()
