"""AudioSet's mean average precision of drawn clips, a thousand times over: for the bootstrap.

Letters: n clips, C classes, P positives (a clip and one of its classes).
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np


def mean_average_precision(
    scores: Mapping[str, Sequence[float]], targets: Mapping[str, Sequence[int]]
) -> Callable[[Sequence[str]], float]:
    """A function from clips, some of them several times, to the "mAP" that `audioset.metrics` gives these.

    What sorting tells is found once, so that a draw costs two running sums over all scores.
    """
    places = {clip: number for number, clip in enumerate(scores)}
    table = np.array([scores[clip] for clip in places], dtype=np.float64).T  # (C, n)
    wanted = np.array([targets[clip] for clip in places], dtype=bool).T
    order = np.argsort(-table, axis=1, kind="stable")  # (C, n): clips, the likeliest first
    ordered = np.take_along_axis(table, order, 1)
    positive = np.take_along_axis(wanted, order, 1)
    rows, columns = np.nonzero(positive)  # (P,) each
    # Equal scores are taken together: what counts at a positive is the last place with its score.
    last = np.array(
        [
            np.searchsorted(-ordered[row], -ordered[row, column], "right") - 1
            for row, column in zip(rows, columns, strict=True)
        ],
        dtype=np.int64,
    )
    clips = order[rows, columns]

    def draw(ids: Sequence[str]) -> float:
        weights = np.zeros(len(places))
        for clip, times in Counter(ids).items():
            weights[places[clip]] = times
        drawn = weights[order]
        taken = drawn.cumsum(1)[rows, last]
        hits = (drawn * positive).cumsum(1)[rows, last]
        share = weights[clips]
        found = np.bincount(rows, share * hits / np.maximum(taken, 1), len(table))
        totals = np.bincount(rows, share, len(table))
        return float((found[totals > 0] / totals[totals > 0]).mean()) if totals.any() else 0.0

    return draw
