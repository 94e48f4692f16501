"""TextVQA accuracy: where it differs from VQA's, and against the official scorer's cases."""

from pathlib import Path

import pytest

from eval.metrics import textvqa, vqa
from tests.eval import cases


@pytest.mark.parametrize(
    ("text", "normalized"),
    [
        ("McDonald's", "mcdonald 's"),
        ("1,000 -dollars", "1000 dollars"),
        ("5,5?", "55"),
        ("a, b", "b"),
        ("The Two", "2"),
        ("wont", "won't"),
        ("no. 1", "no 1"),
        ("let's", "let 's"),
    ],
)
def test_normalizes_as_the_rules_say(text: str, normalized: str) -> None:
    assert textvqa.normalize(text) == normalized


def test_normalizes_even_where_all_annotators_agree() -> None:
    assert vqa.accuracy("Black.", ["black"] * 10) == 0
    assert textvqa.accuracy("Black.", ["black"] * 10) == 1


@pytest.mark.parametrize("count", [0, 9, 11])
def test_wants_ten_annotators(count: int) -> None:
    with pytest.raises(ValueError, match=f"{count} annotators' answers, expected 10"):
        textvqa.accuracy("yes", ["yes"] * count)


def test_official_normalizer_agrees(data_dir: Path) -> None:
    for case in cases.read(data_dir, "textvqa_norm"):
        assert textvqa.normalize(case["text"]) == case["normalised"], case


def test_official_accuracy_agrees(data_dir: Path) -> None:
    official = cases.read(data_dir, "textvqa")
    scores = [textvqa.accuracy(case["prediction"], case["answers"]) for case in official]
    for score, case in zip(scores, official, strict=True):
        assert score == pytest.approx(case["score"], abs=1e-9), case
        assert [textvqa.normalize(answer) for answer in case["answers"]] == case["answers_normalised"], case
    mean = 100 * sum(case["score"] for case in official) / len(official)
    assert f"{100 * sum(scores) / len(scores):.2f}" == f"{mean:.2f}"
