"""Questions that are asked by a button: those that a model can make something of, as far as its config tells."""

from mm_rwkv7.pipeline import Pipeline

LONG_WORD = 3  # letters; shorter words may well be spelled


def presets(pipeline: Pipeline) -> dict[str, str]:
    """What stands on each button, and what it asks. Captions are those of the model's template."""
    template = pipeline.model.config.template
    found: dict[str, str] = {}
    if pipeline.model.tower is not None:
        found |= {
            "Describe": template.caption,
            "In detail": template.caption.rstrip(".") + " in detail.",
            "What is it?": "What is in the picture?",
            "Read the text": "What is written?",
        }
    if pipeline.model.sound is not None:
        found |= {"Describe the sound": template.sound_caption, "What do you hear?": "What do you hear?"}
    return {label: text for label, text in found.items() if label == "Describe" or _known(pipeline, text)}


def _known(pipeline: Pipeline, text: str) -> bool:
    """Whether the model has words for it: one with a vocabulary of its own spells what it was never told."""
    if pipeline.model.config.vocabulary is None:
        return True
    tokenizer = pipeline.tokenizer
    words = [word for word in text.strip(".?").split() if len(word) >= LONG_WORD]
    return all(any(len(tokenizer.token_bytes(i)) > 1 for i in tokenizer.encode(f" {word}")) for word in words)
