"""Questions that are asked by a button: those that a model can make something of, as far as its config tells."""

from typing import NamedTuple

from mm_rwkv7.pipeline import Pipeline

LONG_WORD = 3  # letters; shorter words may well be spelled


class Preset(NamedTuple):
    """What a button asks, and the kind of what it asks about, "image" or "audio"."""

    text: str
    about: str


def presets(pipeline: Pipeline) -> dict[str, Preset]:
    """What stands on each button, and what it asks. Captions are those of the model's template."""
    template = pipeline.model.config.template
    found: dict[str, Preset] = {}
    if pipeline.model.tower is not None:
        found |= {
            "Describe": Preset(template.caption, "image"),
            "In detail": Preset(template.caption.rstrip(".") + " in detail.", "image"),
            "What is it?": Preset("What is in the picture?", "image"),
            "Read the text": Preset("What is written?", "image"),
        }
    if pipeline.model.sound is not None:
        found |= {
            "Describe the sound": Preset(template.sound_caption, "audio"),
            "What do you hear?": Preset("What do you hear?", "audio"),
        }
    return {label: one for label, one in found.items() if label == "Describe" or _known(pipeline, one.text)}


def _known(pipeline: Pipeline, text: str) -> bool:
    """Whether the model has words for it: one with a vocabulary of its own spells what it was never told."""
    if pipeline.model.config.vocabulary is None:
        return True
    tokenizer = pipeline.tokenizer
    words = [word for word in text.strip(".?").split() if len(word) >= LONG_WORD]
    return all(any(len(tokenizer.token_bytes(i)) > 1 for i in tokenizer.encode(f" {word}")) for word in words)
