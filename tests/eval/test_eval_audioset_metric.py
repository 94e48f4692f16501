"""AudioSet's metrics against scikit-learn and by hand."""

import math
import random
import warnings
from statistics import NormalDist

import numpy as np
import pytest

from eval.metrics.audioset import d_prime, metrics, per_class
from eval.metrics.resampled import mean_average_precision


def sklearn_metrics(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The means over classes with a positive (for the area: and a negative), each class by scikit-learn."""
    from sklearn.metrics import average_precision_score, roc_auc_score

    some = targets.any(0)
    both = some & ~targets.all(0)
    area = np.mean([roc_auc_score(targets[:, c], scores[:, c]) for c in np.flatnonzero(both)])
    return {
        "mAP": float(average_precision_score(targets[:, some], scores[:, some], average="macro")),
        "mAUC": float(area),
        "d_prime": math.sqrt(2) * NormalDist().inv_cdf(float(area)),
        "classes": int(some.sum()),
    }


@pytest.mark.parametrize("levels", [2, 5, 10**9])
def test_equals_scikit_learn(seed: int, levels: int) -> None:
    """With few levels most scores are ties; some classes have no positive, one is in every clip."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        clips, classes = int(rng.integers(5, 200)), int(rng.integers(3, 30))
        scores = rng.integers(0, levels, (clips, classes)) / levels
        targets = (rng.random((clips, classes)) < rng.random(classes) * 0.5).astype(int)
        targets[0, 0], targets[1, 0], targets[:, 1] = 1, 0, 1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            expected = sklearn_metrics(scores, targets)
        assert metrics(scores.tolist(), targets.tolist()) == pytest.approx(expected, rel=1e-12, abs=1e-12), seed


def test_by_hand() -> None:
    # Ranked 0.9+, 0.8-, 0.7+, 0.1-: precision 1 at the first positive, 2/3 at the second; of the four pairs of a
    # positive and a negative three are in order.
    assert per_class([0.7, 0.9, 0.1, 0.8], [1, 1, 0, 0]) == pytest.approx(((1 + 2 / 3) / 2, 3 / 4))
    # All equal: one threshold, at which everything is taken; every pair counts half.
    assert per_class([0.5] * 8, [1, 0, 0, 0, 0, 0, 0, 1]) == pytest.approx((2 / 8, 0.5))
    # One positive in third place of five.
    assert per_class([5.0, 4.0, 3.0, 2.0, 1.0], [0, 0, 1, 0, 0]) == pytest.approx((1 / 3, 0.5))
    assert per_class([1.0, 2.0], [0, 0]) == (None, None)
    assert per_class([1.0, 2.0], [1, 1]) == (1.0, None)


def test_classes_without_positives_are_left_out_and_counted() -> None:
    found = metrics([[0.9, 0.3, 0.5], [0.1, 0.2, 0.6]], [[1, 0, 0], [0, 0, 1]])
    assert found == {"mAP": 1.0, "mAUC": 1.0, "d_prime": math.inf, "classes": 2}
    with pytest.raises(ValueError, match="none of the 3 classes"):
        metrics([[0.9, 0.3, 0.5]], [[0, 0, 0]])


def test_published_pair() -> None:
    """AST's own results file holds this area with this d'."""
    assert d_prime(0.978562) == pytest.approx(2.863664, abs=2e-5)


def test_order_of_clips_does_not_matter(seed: int) -> None:
    rng = random.Random(seed)
    rows = [([rng.choice((0.1, 0.2, 0.3)) for _ in range(4)], [rng.randrange(2) for _ in range(4)]) for _ in range(40)]
    before = metrics(*map(list, zip(*rows, strict=True)))
    rng.shuffle(rows)
    assert metrics(*map(list, zip(*rows, strict=True))) == pytest.approx(before), seed


@pytest.mark.parametrize(
    ("scores", "targets", "expected"),
    [
        ([[0.1]], [], "1 clips have scores and 0 have targets"),
        ([], [], "0 clips"),
        ([[0.1, 0.2], [0.1]], [[1, 0], [0, 1]], "clip 1 has 1 scores, expected 2"),
        ([[0.1], [0.2]], [[1], [0, 1]], "clip 1 has 2 targets, expected 1"),
        ([[0.1], [math.nan]], [[1], [0]], "class 0 has a score that is no number"),
        ([[0.1], [0.2]], [[1], [2]], r"class 0 has targets \[1, 2\]"),
    ],
)
def test_what_is_no_table_is_refused(scores: list[list[float]], targets: list[list[int]], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        metrics(scores, targets)


@pytest.mark.parametrize("levels", [2, 10**9])
def test_drawn_clips_score_as_a_table_of_them(seed: int, levels: int) -> None:
    rng = random.Random(seed)
    clips = [f"clip{number}" for number in range(30)]
    scores = {clip: [rng.randrange(levels) / levels for _ in range(6)] for clip in clips}
    targets = {clip: [int(rng.random() < 0.2) for _ in range(6)] for clip in clips}
    targets["clip0"][0] = 1
    draw = mean_average_precision(scores, targets)
    for _ in range(20):
        drawn = ["clip0", *rng.choices(clips, k=30)]
        expected = metrics([scores[clip] for clip in drawn], [targets[clip] for clip in drawn])["mAP"]
        assert draw(drawn) == pytest.approx(expected, rel=1e-12), seed
