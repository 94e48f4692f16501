"""Captions of sounds are judged as those of pictures are, with SPIDEr where SPICE could be computed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from eval import captioning
from eval.task import Scores


def score(predictions: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """The scores of `predictions`, of all that `references` has or of some."""
    found = captioning.score(predictions, references)
    if "SPICE" not in found.metrics:
        return found
    both = (found.metrics["CIDEr-D"] + found.metrics["SPICE"]) / 2
    return replace(found, metrics={**found.metrics, "SPIDEr": both})
