"""POPE: the official parse, and scores counted by hand."""

import pytest

from eval.metrics import pope


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("no", "no"),
        ("No", "no"),
        ("No, there is not.", "no"),
        ("There is not a dog", "no"),
        ("NO", "yes"),
        ("no\n", "yes"),
        ("None", "yes"),
        ("", "yes"),
        ("Yes. No dog is there", "yes"),
        ("I see no. 1", "no"),
        ("n,o", "no"),
        ("There isn't", "yes"),
    ],
)
def test_parses_as_the_official_script(text: str, answer: str) -> None:
    assert pope.parse(text) == answer


def test_scores_by_hand() -> None:
    scores = pope.scores({("yes", "yes"): 2, ("yes", "no"): 2, ("no", "yes"): 1, ("no", "no"): 3})
    assert scores == pytest.approx(
        {"accuracy": 5 / 8, "precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "yes_ratio": 4 / 8}
    )


def test_nothing_said_yes_is_zero_and_no_failure() -> None:
    scores = pope.scores({("no", "yes"): 1, ("no", "no"): 1})
    assert scores == {"accuracy": 0.5, "precision": 0.0, "recall": 0.0, "f1": 0.0, "yes_ratio": 0.0}


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        pope.scores({})
