"""What is heard in a sound, found on the engine's thread a few windows at a time, so that nobody waits for it."""

from collections.abc import Iterator

from torch import Tensor

from app.engine import Engine
from mm_rwkv7.hearing import Hearing
from mm_rwkv7.sounds import Sound
from mm_rwkv7.tagger import Tags, batches, likeliest

TAGS = 5


def hear(engine: Engine, path: str) -> tuple[Sound, Tags]:
    """A file's sound and its likeliest labels, none from a model without a tagging head. ValueError for what cannot be
    read."""
    pipeline = engine.pipeline
    sound = pipeline.processor.sound(path)
    hearing, config = pipeline.model.sound, pipeline.model.config.sound
    assert hearing is not None  # the processor has refused the sound otherwise
    assert config is not None
    if hearing.head is None:
        return sound, []
    return sound, likeliest(_scored(engine, hearing, sound), config.labels, TAGS)


def _scored(engine: Engine, hearing: Hearing, sound: Sound) -> Iterator[tuple[Tensor, Tensor]]:
    for windows, frames in batches(hearing.tokens.frontend, sound, engine.pipeline.device):
        yield engine.call(lambda _, some=windows, of=frames: hearing.tag(some, of)).result(), frames  # type: ignore[misc]
