"""POPE (arXiv 2305.10355): does the model see objects that are not there? Parsing and scores of the official script."""

from collections.abc import Mapping

NEGATIONS = {"No", "not", "no"}  # "NO" and "None" are not among them and count as yes


def parse(text: str) -> str:
    """ "no" if one of No, not, no is a word of the first sentence, else "yes", whatever else was said."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIONS.intersection(words) else "yes"


def scores(outcomes: Mapping[tuple[str, str], int]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and share of yes, 0 to 1, from how often each (answer, label) came; "yes" is the
    positive class.

    A ratio whose denominator is 0 counts as 0 (the official script stops there).
    """
    total = sum(outcomes.values())
    if not total:
        raise ValueError("no answers: POPE needs at least one")
    hits, false_alarms, misses, rejections = (
        outcomes.get(pair, 0) for pair in (("yes", "yes"), ("yes", "no"), ("no", "yes"), ("no", "no"))
    )
    precision, recall = _ratio(hits, hits + false_alarms), _ratio(hits, hits + misses)
    return {
        "accuracy": (hits + rejections) / total,
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": (hits + false_alarms) / total,
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
