"""Captions of sounds are judged as those of pictures are, with SPIDEr where SPICE could be computed."""

from collections.abc import Mapping, Sequence

from eval.metrics import captions
from eval.task import Scores


def score(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """The scores of `predictions`, of all that `references` has or of some."""
    found = captions.evaluate(predictions, {name: references[name] for name in predictions})
    metrics = dict(found.metrics)
    if "SPICE" in metrics:
        metrics["SPIDEr"] = (metrics["CIDEr-D"] + metrics["SPICE"]) / 2
    notes = [f"{name} is left out: {why}." for name, why in found.left_out.items()]
    if len(predictions) < len(references):
        notes.append(
            f"{len(predictions):,} of {len(references):,} sounds were captioned: CIDEr-D weighs words by these alone "
            "and cannot be compared with figures of all."
        )
    each = found.per_sample
    return Scores(
        main="CIDEr-D",
        metrics=metrics,
        per_sample=each,
        corpus={"CIDEr-D": lambda ids: sum(each[name] for name in ids) / len(ids)},
        notes=tuple(notes),
    )
