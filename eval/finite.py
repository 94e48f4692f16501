"""Numbers that are too great to be written."""

import math
from collections.abc import Mapping


def perplexity(log_prob: float, count: float) -> float:
    """exp of the mean loss of `count` things whose probability has this logarithm; infinite beyond what floats hold."""
    try:
        return math.exp(-log_prob / count)
    except OverflowError:
        return math.inf


def finite(metrics: Mapping[str, float]) -> tuple[dict[str, float], tuple[str, ...]]:
    """The metrics that JSON can hold, and a note about each one that it cannot."""
    kept = {name: value for name, value in metrics.items() if math.isfinite(value)}
    return kept, tuple(f"{name} is left out: it is not finite." for name in metrics if name not in kept)
