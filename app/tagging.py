"""What is heard in a sound, found on the engine's thread a few windows at a time, so that nobody waits for it."""

import time
from collections.abc import Iterator

from torch import Tensor

from app.engine import Engine
from mm_rwkv7.hearing import Hearing
from mm_rwkv7.sounds import Sound
from mm_rwkv7.tagger import Tags, batches, likeliest


def tag(engine: Engine, sound: Sound, top: int, timeout_s: float | None = None) -> Tags:
    """The likeliest labels of a sound, none from a model without a tagging head. TimeoutError when it takes longer than
    `timeout_s`."""
    model = engine.pipeline.model
    hearing, config = model.sound, model.config.sound
    if hearing is None or config is None or hearing.head is None:
        return []
    end = None if timeout_s is None else time.monotonic() + timeout_s
    return likeliest(_scored(engine, hearing, sound, end), config.labels, top)


def _scored(engine: Engine, hearing: Hearing, sound: Sound, end: float | None) -> Iterator[tuple[Tensor, Tensor]]:
    for windows, frames in batches(hearing.tokens.frontend, sound, engine.pipeline.device):
        future = engine.call(lambda _, some=windows, of=frames: hearing.tag(some, of))  # type: ignore[misc]
        try:
            yield future.result(None if end is None else end - time.monotonic()), frames
        finally:
            future.cancel()  # nothing where it is done
