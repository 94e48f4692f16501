"""What is heard in a sound that was sent."""

from app.engine import Engine
from app.tagging import tag
from mm_rwkv7.sounds import Sound
from mm_rwkv7.tagger import Tags

TAGS = 5


def hear(engine: Engine, path: str) -> tuple[Sound, Tags]:
    """A file's sound and its likeliest labels, none from a model without a tagging head. ValueError for what cannot be
    read."""
    sound = engine.pipeline.processor.sound(path)
    return sound, tag(engine, sound, TAGS)
