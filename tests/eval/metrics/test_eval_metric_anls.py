"""ANLS: by hand, edit distance against a plain recursion, and against the official scorer's cases."""

import random
from functools import cache
from pathlib import Path

import pytest

from eval.metrics import anls
from tests.eval import cases


def plain_distance(a: str, b: str) -> int:
    @cache
    def distance(i: int, j: int) -> int:
        if min(i, j) == 0:
            return max(i, j)
        change = distance(i - 1, j - 1) + (a[i - 1] != b[j - 1])
        return min(change, distance(i - 1, j) + 1, distance(i, j - 1) + 1)

    return distance(len(a), len(b))


def test_edit_distance_equals_its_definition(seed: int) -> None:
    dice = random.Random(seed)
    for _ in range(100):
        a, b = ("".join(dice.choices("abc", k=dice.randrange(8))) for _ in range(2))
        assert anls.edit_distance(a, b) == plain_distance(a, b), f"seed {seed}: {a!r}, {b!r}"


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("Paris", ["paris"], 1.0),
        ("pariss", ["paris"], 5 / 6),
        ("ab", ["ac"], 0.5),  # a half still counts
        ("abc", ["ade"], 0.0),  # a third does not
        ("x", ["yyyy", "x"], 1.0),
        ("", [""], 1.0),
        ("  paris  ", ["pariz"], 1 - 1 / 9),  # the spaces do not count as different, but as length
        ("masse", ["maße"], 0.6),  # "MASSE" and "MASSE": the length is 5, the distance of "masse" and "maße" 2
    ],
)
def test_scores_as_the_rules_say(prediction: str, answers: list[str], score: float) -> None:
    assert anls.score(prediction, answers) == pytest.approx(score, abs=1e-12)


def test_no_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        anls.score("yes", [])


def test_official_score_agrees(data_dir: Path) -> None:
    official = cases.read(data_dir, "anls")
    for case in official:
        assert anls.score(case["prediction"], case["answers"]) == pytest.approx(case["anls"], abs=1e-9), case
