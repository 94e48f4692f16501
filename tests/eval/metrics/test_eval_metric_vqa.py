"""VQA accuracy: by hand from the rules, as a property, and against the official scorer's cases."""

import random
from pathlib import Path

import pytest

from eval.metrics import vqa
from tests.eval import cases

NORMALIZED = {
    "None.": "0",
    "Eleven zero ten": "eleven 0 10",
    "a dog and the cat": "dog and cat",
    "dont": "don't",
    "couldntve": "couldntve",  # two apostrophes lost: not in the table
    "couldnt've": "couldn't've",
    "somebody'd": "somebodyd",
    "Im here": "im here",  # its entry has a capital and is never found
    "t-shirt": "t shirt",
    "t -shirt": "t shirt",  # the hyphen stands beside a space: it goes
    "a-b - c": "ab c",  # ... and with it every other hyphen
    "x-y;-z": "x y z",  # the hyphen after ";" stands beside a space only once ";" is replaced: too late
    "1,000-2": "10002",  # a number with a comma: all marks go
    "3.": "3",
    "3.5": "3.5",
    "u.s.": "us",
    "$5 & 10%": "$5 & 10%",
    "yes\tno\n": "yes no",
    "she's": "she's",
    "." * 33: ".",  # the 32nd is the last that goes
}


@pytest.mark.parametrize("text", NORMALIZED)
def test_normalizes_as_the_rules_say(text: str) -> None:
    assert vqa.normalize(text) == NORMALIZED[text]


@pytest.mark.parametrize(("matching", "expected"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)])
def test_three_other_annotators_are_enough(matching: int, expected: float) -> None:
    answers = ["red"] * matching + [f"other {i}" for i in range(10 - matching)]
    assert vqa.accuracy("red", answers) == pytest.approx(expected, abs=1e-12)


def test_equal_answers_are_compared_as_they_are() -> None:
    assert vqa.accuracy("Black.", ["black"] * 10) == 0
    assert vqa.accuracy(" black\n", ["black"] * 10) == 1
    assert vqa.accuracy("Black.", ["black"] * 9 + ["dark"]) == 1
    assert vqa.accuracy("0", ["none"] * 10) == 0
    assert vqa.accuracy("0", ["none"] * 9 + ["zero"]) == 1


def test_order_of_annotators_does_not_matter(seed: int) -> None:
    dice = random.Random(seed)
    words = ["Red", "red.", "the red", "blue", "2", "two"]
    for _ in range(50):
        answers = dice.choices(words, k=10)
        shuffled = dice.sample(answers, k=10)
        prediction = dice.choice(words)
        assert vqa.accuracy(prediction, answers) == pytest.approx(vqa.accuracy(prediction, shuffled)), f"seed {seed}"


def test_percents_are_rounded_as_in_the_official_tables() -> None:
    assert vqa.percent([1, 0, 0]) == 33.33
    by = vqa.percent_by([1, 0, 0.3, 0.9], ["what", "is the", "what", "what"])
    assert by == {"is the": 0.0, "what": 73.33}
    assert list(by) == ["is the", "what"]


def test_no_answers_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one"):
        vqa.accuracy("yes", [])


def test_official_normalizer_agrees(data_dir: Path) -> None:
    for case in cases.read(data_dir, "vqa_norm"):
        assert vqa.strip_punctuation(vqa.one_line(case["text"])) == case["after_punctuation"], case
        assert vqa.normalize(case["text"]) == case["normalised"], case


def test_official_accuracy_agrees(data_dir: Path) -> None:
    official = cases.read(data_dir, "vqa")
    scores = [vqa.accuracy(case["prediction"], case["answers"]) for case in official]
    for score, case in zip(scores, official, strict=True):
        assert score == pytest.approx(case["score"], abs=1e-9), case
        assert round(100 * score, 2) == case["score_pct_round2"], case
    assert vqa.percent(scores) == round(100 * sum(case["score"] for case in official) / len(official), 2)
    for kind in ("question_type", "answer_type"):
        for group, percent in vqa.percent_by(scores, [case[kind] for case in official]).items():
            members = [case["score"] for case in official if case[kind] == group]
            assert percent == round(100 * sum(members) / len(members), 2), group
