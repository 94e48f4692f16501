"""Average Normalised Levenshtein Similarity (arXiv 1907.00490) as the Robust Reading Competition scores DocVQA."""

from collections.abc import Sequence

THRESHOLD = 0.5


def score(prediction: str, answers: Sequence[str]) -> float:
    """The best similarity, 0 to 1, of `prediction` to one of `answers`; below a half it counts as 0.

    Compared in lower case with single spaces; but the length that the distance is divided by is that of the longer text
    as it came.
    """
    if not answers:
        raise ValueError("no answers: ANLS needs at least one")
    similarity = 1 - min(_distance_share(prediction, answer) for answer in answers)
    return similarity if similarity >= THRESHOLD else 0.0


def _distance_share(prediction: str, answer: str) -> float:
    # Upper case as the official script has it: some letters are two then ("ß", "SS").
    length = max(len(prediction.upper()), len(answer.upper()))
    return edit_distance(_squeezed(prediction), _squeezed(answer)) / length if length else 0.0


def _squeezed(text: str) -> str:
    return " ".join(text.strip().lower().split())


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions that turn `a` into `b`."""
    row = list(range(len(b) + 1))  # distances of what was read of `a` to each beginning of `b`
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]
