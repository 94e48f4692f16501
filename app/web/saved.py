"""A conversation as one file, to go on from tomorrow or on another machine with the same model.

A safetensors file: the bytes of state files (`state_files.py`) and of small PNG previews as uint8 tensors, and the
transcript as JSON in the metadata. Each state is checked on its way back as any state that a stranger brings.
"""

import json
import tempfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from app.state_files import dump, load, state_bytes
from app.web.conversation import Medium, Turn
from app.web.shelf import NOTHING, Gone, Handle, Shelf
from mm_rwkv7.pipeline import Pipeline

FORMAT = "mm-rwkv7-conversation/1"
STATES = 8 << 20  # bytes of states in a file besides the last one
PREVIEW = 256  # pixels of a preview's longer side
PREVIEWS = 64  # the latest ones
LARGEST = 64 << 20  # bytes of transcript and previews
TURNS = 10_000
MEDIA = 32  # of a turn
PREVIEW_BYTES = 1 << 19  # more than any that is made here
EMPTY, LOST = -1, -2  # in place of a state's number


def save(turns: Sequence[Turn], shelf: Shelf, pipeline: Pipeline) -> bytes:
    """The file's bytes. ValueError where nothing was said, or when the last state is gone."""
    if not turns:
        raise ValueError("nothing was said yet")
    numbers: dict[Handle, int] = {NOTHING: EMPTY}
    tensors: dict[str, Tensor] = {}
    held = 0
    for turn in reversed(turns):
        for handle in (turn.after, turn.opened, turn.begins):
            if handle in numbers:
                continue
            try:
                state = shelf.get(handle)
            except Gone:
                if not tensors:
                    raise
                state = None
            if state is None or (tensors and held + state_bytes(pipeline) > STATES):
                numbers[handle] = LOST
                continue
            numbers[handle] = len(tensors)
            tensors[f"states.{numbers[handle]}"] = _tensor(dump(state))
            held += state_bytes(pipeline)
    previews: list[bytes] = []
    transcript = [_told(turn, numbers, previews) for turn in reversed(turns)][::-1]
    tensors |= {f"previews.{number}": _tensor(preview) for number, preview in enumerate(previews)}
    metadata = {"format": FORMAT, "model": pipeline.fingerprint, "transcript": json.dumps(transcript)}
    from safetensors.torch import save as to_bytes

    return to_bytes(tensors, metadata)


def restore(data: bytes, shelf: Shelf, pipeline: Pipeline) -> list[Turn]:
    """The turns of a file's bytes, their states on the shelf. ValueError in one line for anything but a whole file of
    this very model."""
    metadata, tensors = _opened(data, pipeline)
    if metadata.get("format") != FORMAT:
        raise ValueError("the file is no saved conversation")
    if (model := metadata.get("model", "")) != pipeline.fingerprint:
        raise ValueError(
            f"the conversation is one with model {model[:12]!r}..., this is {pipeline.fingerprint[:12]}..."
        )
    try:
        transcript = json.loads(metadata.get("transcript", ""))
        _check(isinstance(transcript, list) and 0 < len(transcript) <= TURNS)
        previews = _previews(tensors)
        states = {name: bytes(tensor.numpy()) for name, tensor in tensors.items() if name.startswith("states.")}
        read = {name: load(blob, pipeline) for name, blob in states.items()}
        for told in transcript:  # nothing of a file that is refused goes to the shelf
            _turn(told, previews, dict.fromkeys(read, NOTHING))
        handles = {name: shelf.put(state) for name, state in read.items()}
        return [_turn(told, previews, handles) for told in transcript]
    except (KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError("the file is not a whole conversation") from error
    except ValueError as error:
        raise ValueError(f"the file is not a whole conversation: {error}") from error


def preview_of(picture: Image.Image) -> bytes:
    """A picture as a small PNG."""
    small, buffer = picture.copy(), BytesIO()
    small.thumbnail((PREVIEW, PREVIEW))
    small.save(buffer, "PNG")
    return buffer.getvalue()


def _opened(data: bytes, pipeline: Pipeline) -> tuple[dict[str, str], dict[str, Tensor]]:
    from safetensors import SafetensorError, safe_open

    most = 2 * (STATES + 2 * state_bytes(pipeline)) + LARGEST
    if len(data) > most:
        raise ValueError(f"the file has {len(data):,} bytes, and a conversation with this model takes at most {most:,}")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "conversation")
        path.write_bytes(data)
        try:
            with safe_open(path, "pt") as file:
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                metadata = file.metadata() or {}
        except SafetensorError as error:
            raise ValueError("the file is no saved conversation") from error
    if any(tensor.dtype != torch.uint8 or tensor.ndim != 1 for tensor in tensors.values()):
        raise ValueError("the file is no saved conversation")
    return metadata, tensors


def _told(turn: Turn, numbers: dict[Handle, int], previews: list[bytes]) -> dict[str, Any]:
    media = []
    for medium in turn.media:
        media.append({"kind": medium.kind, "name": medium.name})
        if medium.preview and len(previews) < PREVIEWS:
            media[-1]["preview"] = str(len(previews))
            previews.append(medium.preview)
    states = {name: numbers[getattr(turn, name)] for name in ("begins", "opened", "after")}
    return {"media": media, "text": turn.text, "answer": turn.answer, "states": states}


def _previews(tensors: dict[str, Tensor]) -> dict[str, bytes]:
    found = {name: bytes(tensor.numpy()) for name, tensor in tensors.items() if name.startswith("previews.")}
    _check(len(found) <= PREVIEWS and all(len(preview) <= PREVIEW_BYTES for preview in found.values()))
    for preview in found.values():
        _check_preview(preview)
    return found


def _turn(told: Any, previews: dict[str, bytes], handles: dict[str, Handle]) -> Turn:
    def handle(name: str) -> Handle:
        number = told["states"][name]
        _check(isinstance(number, int))
        if number == LOST:
            return b"lost"  # which no shelf has
        return NOTHING if number == EMPTY else handles[f"states.{number}"]

    texts = (_text(told["text"]), _text(told["answer"]))
    _check(len(told["media"]) <= MEDIA)
    media = tuple(_medium(one, previews) for one in told["media"])
    return Turn(media, *texts, handle("begins"), handle("opened"), handle("after"))


def _medium(told: Any, previews: dict[str, bytes]) -> Medium:
    kind, name = told["kind"], told["name"]
    _check(kind in ("image", "audio"))
    preview = previews[f"previews.{int(told['preview'])}"] if "preview" in told else b""
    return Medium(kind, Path(_text(name)).name[:200], preview=preview)


def _text(told: Any) -> str:
    _check(isinstance(told, str))
    told.encode()  # JSON may hold halves of characters
    return str(told)


def _check_preview(data: bytes) -> None:
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            _check(max(picture.size) <= PREVIEW)
            picture.load()
    except Exception as error:  # Pillow's readers raise errors of nearly any kind on a malformed file
        raise ValueError("a preview is no small picture") from error


def _check(good: bool) -> None:
    if not good:
        raise ValueError("its transcript is not one")


def _tensor(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)
