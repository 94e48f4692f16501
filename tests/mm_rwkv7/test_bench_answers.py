"""What `bench answers` compares; how long it took is not a test's business."""

import json

import pytest

from mm_rwkv7.bench.__main__ import main


def test_both_ways_give_the_same_answers(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--pictures", "2", "--questions", "2", "--batch", "3", "--rounds", "2", "--device", "cpu", "--json")
    assert main(["answers", *asked]) == 0
    alone, together = json.loads(capsys.readouterr().out)
    assert (alone["way"], together["way"]) == ("one by one", "side by side")
    assert (alone["questions"], together["questions"], alone["times_faster"]) == (4, 4, 1)
    assert together["equal_answers"] == alone["equal_answers"] == 1
    assert together["questions_per_s"]["median"] > 0


def test_questions_that_cannot_be_asked_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["answers", "--questions", "9"]) == 2
    assert "1 to 5 --questions" in capsys.readouterr().err
