"""AudioSet's metrics: mean average precision, mean area under the ROC curve and d', on the standard library.

Letters: n clips, C classes.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import groupby
from statistics import NormalDist


def metrics(scores: Sequence[Sequence[float]], targets: Sequence[Sequence[int]]) -> dict[str, float]:
    """scores (n, C), the higher the likelier; targets (n, C) of 0 and 1 -> "mAP", "mAUC", "d_prime", "classes".

    Each class is measured over all clips, and the means are over classes without weights, as PANNs and AST report them.
    Average precision and the area are those of scikit-learn, equal scores included. A class without a positive clip has
    neither and is left out; "classes" is how many are in. A class that every clip has is in mAP and not in mAUC, since
    there is nothing to tell it from. d' = sqrt(2) Phi^-1(mAUC), of the mean area (not the mean of each class's d'); it
    is infinite where no clip is ranked wrongly, and with mAUC NaN where every class is in every clip.
    """
    found = [per_class(*columns) for columns in _columns(scores, targets)]
    precisions = [precision for precision, _ in found if precision is not None]
    areas = [area for _, area in found if area is not None]
    if not precisions:
        raise ValueError(f"none of the {len(found)} classes has a positive among {len(scores)} clips")
    area = math.fsum(areas) / len(areas) if areas else math.nan
    return {
        "mAP": math.fsum(precisions) / len(precisions),
        "mAUC": area,
        "d_prime": d_prime(area),
        "classes": len(precisions),
    }


def per_class(scores: Sequence[float], targets: Sequence[int]) -> tuple[float | None, float | None]:
    """One class's scores (n) and targets (n) -> average precision and area under the ROC curve, None where there is
    none."""
    positives = sorted(score for score, target in zip(scores, targets, strict=True) if target)
    count, negatives = len(positives), len(scores) - len(positives)
    if not count:
        return None, None
    ordered = sorted(scores)
    precision, wins, below = 0.0, 0.0, 0  # `below`: positives with a lower score
    for score, group in groupby(positives):
        tied = sum(1 for _ in group)
        lower, not_higher = bisect_left(ordered, score), bisect_right(ordered, score)
        precision += tied * (count - below) / (len(ordered) - lower)
        # A negative with the same score counts half.
        wins += tied * (lower - below + 0.5 * (not_higher - lower - tied))
        below += tied
    return precision / count, wins / (count * negatives) if negatives else None


def d_prime(area: float) -> float:
    """How many standard deviations lie between two normal distributions that give this area."""
    if not 0 < area < 1:
        return math.nan if math.isnan(area) else math.copysign(math.inf, area - 0.5)
    return math.sqrt(2) * NormalDist().inv_cdf(area)


def _columns(
    scores: Sequence[Sequence[float]], targets: Sequence[Sequence[int]]
) -> list[tuple[Sequence[float], Sequence[int]]]:
    """Scores and targets of each class, checked."""
    if len(scores) != len(targets) or not len(scores):
        raise ValueError(f"{len(scores)} clips have scores and {len(targets)} have targets, expected equally many")
    classes = len(targets[0])
    for kind, rows in (("scores", scores), ("targets", targets)):
        for clip, row in enumerate(rows):
            if len(row) != classes:
                raise ValueError(f"clip {clip} has {len(row)} {kind}, expected {classes}")
    columns: list[tuple[Sequence[float], Sequence[int]]] = list(
        zip(zip(*scores, strict=True), zip(*targets, strict=True), strict=True)
    )
    for number, (column, wanted) in enumerate(columns):
        if any(map(math.isnan, column)):
            raise ValueError(f"class {number} has a score that is no number")
        if not set(wanted) <= {0, 1}:
            raise ValueError(f"class {number} has targets {sorted(set(wanted))[:5]}, expected 0 and 1")
    return columns
