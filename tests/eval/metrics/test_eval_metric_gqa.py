"""GQA: conversion, steps and distribution by hand, and single answers against the official scorer's cases."""

from pathlib import Path

import pytest

from eval.metrics import gqa
from tests.eval import cases


def question(answer: str, group: str | None, balanced: bool = True) -> gqa.Question:
    return gqa.Question(answer, balanced, "query", "attr", "directOf", 1, 3, group, ())


@pytest.mark.parametrize(
    ("prediction", "raw", "llava"),
    [
        ("yes", True, True),
        ("Yes.", False, True),
        ("YES...", False, True),
        ("yes ", False, False),
        ("yes. ", False, False),
    ],
)
def test_raw_is_letter_by_letter(prediction: str, raw: bool, llava: bool) -> None:
    assert gqa.correct(prediction, "yes") == raw
    assert gqa.correct(prediction, "yes", variant="llava") == llava


def test_an_unknown_variant_is_an_error() -> None:
    with pytest.raises(ValueError, match='expected "raw" or "llava"'):
        gqa.correct("yes", "yes", variant="vqa")


def test_the_step_that_asks_for_the_answer_is_none() -> None:
    assert gqa.steps([("select", "dog (1)"), ("relate", "cat,left,s (2)"), ("query", "name")]) == 2
    assert gqa.steps([("select", "dog (1)"), ("exist", "?")]) == 1
    assert gqa.steps([("select", "dog (1)"), ("choose name", "cat|dog")]) == 1
    assert gqa.steps([("select", "dog (1)"), ("query", "color")]) == 2


def test_distribution_weighs_groups_by_their_size() -> None:
    questions = {
        "1": question("red", "color"),
        "2": question("red", "color"),
        "3": question("blue", "color"),
        "4": question("left", "place"),
        "5": question("yes", None),
    }
    predictions = {"1": "red", "2": "blue", "3": "blue", "4": "top", "5": "no"}
    # color: (1 - 2)^2 / 2 + (2 - 1)^2 / 1 = 1.5; place: (0 - 1)^2 / 1 = 1, "top" counts nowhere
    assert gqa.distribution(questions, predictions) == pytest.approx((1.5 * 3 + 1 * 1) / 4 / 100, abs=1e-12)
    assert gqa.distribution(questions, {id: q.answer for id, q in questions.items()}) == 0


def test_only_balanced_questions_count() -> None:
    questions = {"1": question("red", None), "2": question("red", None, balanced=False)}
    metrics = gqa.scores(questions, {"1": "red", "2": "blue"})
    assert metrics == {"accuracy": 100, "open": 100}
    assert gqa.consistency(questions, {"1": "red", "2": "blue"}) is None


@pytest.mark.parametrize("right", [True, False])
def test_consistency_names_what_it_lacks(right: bool) -> None:
    said = "red" if right else "blue"
    one = gqa.Question("red", True, "query", "attr", "directOf", 1, 3, None, ("1", "2"))
    both = {"1": one, "2": question("blue", None, balanced=False)}
    assert gqa.consistency(both, {"1": said, "2": "red"}) == (0 if right else None)
    with pytest.raises(ValueError, match="question '1': there is no prediction '2'"):
        gqa.consistency(both, {"1": said})
    with pytest.raises(ValueError, match="question '1': there is no question '2'"):
        gqa.consistency({"1": one}, {"1": said, "2": "red"})
    with pytest.raises(ValueError, match="question '1': there is no prediction '1'"):
        gqa.consistency(both, {"2": "red"})


def test_official_scores_agree(data_dir: Path) -> None:
    official = cases.read(data_dir, "gqa")
    for case in official:
        assert gqa.correct(case["prediction"], case["answer"]) == case["score_official_raw"], case
        assert gqa.convert(case["prediction"], "llava") == case["prediction_llava"], case
        converted = gqa.correct(case["prediction"], case["answer"], "llava")
        assert converted == case["score_official_llava_convert"], case
    for variant, name in (("raw", "score_official_raw"), ("llava", "score_official_llava_convert")):
        balanced = [case for case in official if case["is_balanced"]]
        questions = {
            case["question_id"]: gqa.Question(
                case["answer"], case["is_balanced"], case["structural"], case["semantic"], "", 1, 1, None, ()
            )
            for case in official
        }
        predictions = {case["question_id"]: gqa.convert(case["prediction"], variant) for case in official}
        expected = 100 * sum(case[name] for case in balanced) / len(balanced)
        assert f"{gqa.scores(questions, predictions)['accuracy']:.2f}" == f"{expected:.2f}"
        for row, value in gqa.tables(questions, predictions)["structural type"].items():
            members = [case[name] for case in balanced if case["structural"] == row]
            assert f"{value:.2f}" == f"{100 * sum(members) / len(members):.2f}", row
