"""A long text read once into a state of a few MB, from which any number of questions is answered. A file that holds no
text is refused before a model, or a library, is loaded."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from app.engine import Engine
    from app.requests import Request, Ticket
    from mm_rwkv7.pipeline import Pipeline
    from mm_rwkv7.state import State

PORTION = 2048  # tokens read between two reports
ENCODING = "utf-8-sig"  # with or without a mark at the beginning


def load_document(path: str | Path) -> str:
    """The text of a file. ValueError for one that holds none, or other bytes than UTF-8."""
    try:
        text = Path(path).read_text(ENCODING)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text in UTF-8: {error.reason} at byte {error.start}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    if not text.strip():
        raise ValueError(f"{path} holds no text")
    return text


def portions(pipeline: "Pipeline", text: str) -> list[list[int]]:
    """The ids of a text as a user's message, cut where reading pauses."""
    segments = pipeline.processor.segments([{"role": "user", "content": text}], generate=False)
    ids = [i for segment in segments if isinstance(segment, str) for i in pipeline.tokenizer.encode(segment)]
    return [ids[start : start + PORTION] for start in range(0, len(ids), PORTION)]


def read_with_bar(pipeline: "Pipeline", text: str) -> "State":
    """The state after a text, read with a pipeline that is one's own; a bar on stderr says how far it is."""
    import torch
    from tqdm import tqdm

    from mm_rwkv7.generate import prefill

    pieces, state = portions(pipeline, text), None
    with tqdm(total=sum(map(len, pieces)), unit="token", unit_scale=True, file=sys.stderr) as bar:
        for piece in pieces:
            _, state = prefill(pipeline.model, torch.tensor([piece], device=pipeline.device), state)
            bar.update(len(piece))
    assert state is not None
    return pipeline.sign(state)


def read_in(engine: "Engine", pieces: Sequence[Sequence[int]]) -> "Iterator[State]":
    """The state after each piece, read in an engine whose other requests have their turns meanwhile; its being busy is
    waited for. Closing the iterator ends the reading."""
    from app.requests import Request

    state = None
    for piece in pieces:
        with _submitted(engine, Request(text=piece, state=state, write=False)) as ticket:
            state = ticket.result().state
        yield state


def _submitted(engine: "Engine", request: "Request") -> "Ticket":
    from app.requests import Busy

    while True:
        try:
            return engine.submit(request)
        except Busy as busy:
            time.sleep(busy.retry_after_s)
