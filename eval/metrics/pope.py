"""POPE (arXiv 2305.10355): does the model see objects that are not there? Parsing and scores of the official script."""

from collections.abc import Sequence

NEGATIONS = {"No", "not", "no"}  # "NO" and "None" are not among them and count as yes


def parse(text: str) -> str:
    """ "no" if one of No, not, no is a word of the first sentence, else "yes", whatever else was said."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if NEGATIONS.intersection(words) else "yes"


def scores(answers: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Accuracy, precision, recall, F1 and share of yes, 0 to 1, of "yes" | "no" answers; "yes" is the positive class.

    A ratio whose denominator is 0 counts as 0 (the official script stops there).
    """
    pairs = list(zip(answers, labels, strict=True))
    if not pairs:
        raise ValueError("no answers: POPE needs at least one")
    true_positive = pairs.count(("yes", "yes"))
    said, there = sum(answer == "yes" for answer, _ in pairs), sum(label == "yes" for _, label in pairs)
    precision, recall = _ratio(true_positive, said), _ratio(true_positive, there)
    return {
        "accuracy": sum(answer == label for answer, label in pairs) / len(pairs),
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": said / len(pairs),
    }


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0
