"""VizWiz from its official files: twenty questions, a quarter of them unanswerable."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.tasks.vizwiz import Test, Val
from tests.eval import official


def record(number: int, split: str = "val", **changes: Any) -> dict[str, Any]:
    possible = number % 4 != 0
    words = [f"can {number}"] * 6 + ["tin"] * 2 + ["food", "unsuitable"] if possible else ["unanswerable"] * 10
    return {
        "image": f"VizWiz_{split}_{number:08}.jpg",
        "question": f"What is this, {number}?",
        "answers": [{"answer": word, "answer_confidence": "yes"} for word in words],
        "answer_type": "other" if possible else "unanswerable",
        "answerable": int(possible),
        **changes,
    }


def write(folder: Path, **changes: Any) -> None:
    official.write(folder / "val.json", [record(n, **changes) if n == 7 else record(n) for n in range(20)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_samples_offer_the_way_out(data: Path) -> None:
    sample = official.check_samples(Val(), data, 20)["VizWiz_val_00000003.jpg"]
    assert sample.question.split("\n") == [
        "What is this, 3?",
        "When the provided information is insufficient, respond with 'Unanswerable'.",
        "Answer the question using a single word or phrase.",
    ]
    assert sample.images == (data / "val" / "VizWiz_val_00000003.jpg",)
    assert sample.expected == "can 3"


def test_scores_equal_a_count_by_hand(data: Path) -> None:
    answers = {f"VizWiz_val_{n:08}.jpg": f"Can {n}." if n % 4 else "Unanswerable." for n in range(20)}
    for n, text in ((0, "a shoe"), (1, "the tin"), (2, "food"), (3, "unanswerable")):
        answers[f"VizWiz_val_{n:08}.jpg"] = text
    # 0 and 3 are wrong, 1 is with two annotators (0.6), 2 with one (0.3): 16.9 of 20.
    # Five are unanswerable; five were called so, four of them rightly: precision, recall and F1 are 4/5.
    # By the rule of VQAv2 equal annotators want the very string: 4, 8, 12 and 16 are lost for "Unanswerable.".
    expected = {
        "accuracy": 84.5,
        "accuracy_vqa": 64.5,
        "unanswerable_f1": 80,
        "unanswerable_average_precision": 69,  # 4/5 x 4/5 + 1/5 x 5/20
    }
    official.check_scores(Val(), data, answers, expected)
    assert Val().score(data, answers).breakdown == {"answer type": {"other": 86, "unanswerable": 80}}


def test_test_split_becomes_a_file_for_evalai(tmp_path: Path) -> None:
    rows = [{name: record(n, "test")[name] for name in ("image", "question")} for n in range(20)]
    official.write(tmp_path / "test.json", rows)
    official.check_samples(Test(), tmp_path, 20)
    assert not Test().scored_here
    name, text = Test().submission(tmp_path, {"VizWiz_test_00000000.jpg": "A Can."})
    assert name == "vizwiz_test_evalai.json"
    assert json.loads(text) == [{"image": "VizWiz_test_00000000.jpg", "answer": "can"}]


def test_bad_files_are_refused(data: Path) -> None:
    nine = record(7)["answers"][:9]
    for changes, message in (
        ({"answers": nine}, r"val\.json\[7\]\.answers: expected 10 items, got 9"),
        ({"answers": [{"answer": 5}] * 10}, r"val\.json\[7\]\.answers\[0\]\.answer: expected a text, got 5"),
        ({"answerable": 2}, r"val\.json\[7\]\.answerable: 2, expected 0 or 1"),
        ({"image": "VizWiz_val_00000003.jpg"}, r"val\.json\[7\]: 'VizWiz_val_00000003\.jpg' was there before"),
    ):
        write(data, **changes)
        official.check_record_refusal(Val(), data, message)
    official.check_refusals(Val(), data, "val.json")
