"""VizWiz: the rule of its own code, and answerability against scikit-learn."""

import random

import pytest

from eval.metrics import vizwiz, vqa


def test_only_the_prediction_is_normalised() -> None:
    answers = ["unanswerable"] * 4 + ["Coke"] * 6
    assert vizwiz.accuracy("Unanswerable.", answers) == 1
    assert vizwiz.accuracy("Coke", answers) == 0
    assert vqa.accuracy("Coke", answers) == 1
    assert vizwiz.accuracy("Black.", ["black"] * 10) == 1


def test_equal_answers_are_left_out_one_at_a_time() -> None:
    assert vizwiz.accuracy("milk", ["milk"] * 2 + ["a"] * 8) == pytest.approx(0.6)


def test_answerability_equals_scikit_learn(seed: int) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    dice = random.Random(seed)
    for _ in range(50):
        size = dice.randrange(2, 40)
        possible = [False, *(dice.random() < 0.6 for _ in range(size - 1))]
        said = [dice.random() < 0.4 for _ in range(size)]
        texts = [dice.choice(["unanswerable", "Unanswerable."]) if claim else "a dog" for claim in said]
        found = vizwiz.answerability(texts, possible)
        truth = [not answerable for answerable in possible]
        assert found["average_precision"] == pytest.approx(metrics.average_precision_score(truth, said)), f"seed {seed}"
        assert found["f1"] == pytest.approx(metrics.f1_score(truth, said, zero_division=0)), f"seed {seed}"


def test_nothing_unanswerable_has_no_such_score() -> None:
    assert vizwiz.answerability(["a dog"], [True]) == {}
