"""Captions of pictures and of sounds are judged alike."""

from collections.abc import Mapping, Sequence

from eval.metrics import captions
from eval.metrics.mean import mean
from eval.task import Scores


def score(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """The scores of `predictions`, of all that `references` has or of some."""
    found = captions.evaluate(predictions, {name: references[name] for name in predictions})
    notes = [f"{name} is left out: {why}." for name, why in found.left_out.items()]
    if len(predictions) < len(references):
        notes.append(
            f"{len(predictions):,} of {len(references):,} were captioned: CIDEr-D weighs words by these alone and "
            "cannot be compared with figures of all."
        )
    return Scores(
        main="CIDEr-D",
        metrics=found.metrics,
        per_sample=found.per_sample,
        corpus={"CIDEr-D": lambda ids: mean(found.per_sample[name] for name in ids)},
        notes=tuple(notes),
    )
