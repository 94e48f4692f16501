"""TextVQA from its official files: twenty questions on seven pictures, with and without OCR tokens."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval import score
from eval.tasks.textvqa import Test, TestOcr, Val, ValOcr
from tests.eval import official


def record(number: int, **changes: Any) -> dict[str, Any]:
    """Seven annotators say "brand <number>", two something else, one nothing."""
    return {
        "question_id": 34600 + number,
        "question": f"what is brand {number}?",
        "question_tokens": ["what"],
        "image_id": f"{number % 7:016x}",
        "image_classes": ["Bottle"],
        "image_width": 8,
        "image_height": 8,
        "set_name": "val",
        "answers": [f"Brand {number}"] * 7 + ["a label"] * 2 + [""],
        **changes,
    }


def write(folder: Path, rows: list[dict[str, Any]], split: str = "val") -> None:
    official.write(folder / f"TextVQA_0.5.1_{split}.json", {"dataset_type": split, "data": rows})
    tokens = [
        {"image_id": f"{n:016x}", "ocr_tokens": ["ACME", f"no. {n}"] if n else [], "ocr_info": []} for n in range(7)
    ]
    official.write(folder / f"TextVQA_Rosetta_OCR_v0.2_{split}.json", {"data": tokens})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path, [record(n) for n in range(20)])
    return tmp_path


def test_samples_with_and_without_tokens(data: Path) -> None:
    plain = official.check_samples(Val(), data, 20)["34608"]
    assert plain.question == "What is brand 8?\nAnswer the question using a single word or phrase."
    assert plain.images == (data / "train_images" / f"{1:016x}.jpg",)
    assert plain.expected == "Brand 8"
    with_tokens = {sample.id: sample.question.split("\n") for sample in ValOcr().samples(data)}
    assert with_tokens["34608"][1] == "Reference OCR token: ACME, no. 1"
    assert with_tokens["34607"][1] == "Reference OCR token: "
    assert Val().variant != ValOcr().variant


def test_scores_equal_a_count_by_hand(data: Path) -> None:
    answers = {str(34600 + n): f"brand {n}." for n in range(20)}
    answers |= {"34600": "brand", "34601": "the Label!", "34602": "", "34603": "BRAND, 3"}
    # Right but for 00 (0), 01 (two annotators: 0.6) and 02 (one: 0.3).
    for task in (Val(), ValOcr()):
        official.check_scores(task, data, answers, {"accuracy": 100 * (17 + 0.6 + 0.3) / 20})


def test_a_part_is_scored_alone(data: Path) -> None:
    official.check_scores(Val(), data, {"34601": "a label", "34605": "brand 5"}, {"accuracy": 80})


def test_test_split_becomes_a_file_for_evalai(tmp_path: Path) -> None:
    rows = [record(n) for n in range(20)]
    for row in rows:
        del row["answers"]
    folder = tmp_path / "textvqa"
    write(folder, rows, "test")
    official.check_samples(Test(), folder, 20)
    assert not Test().scored_here
    assert not TestOcr().scored_here
    assert "Reference OCR token" in TestOcr().samples(folder)[0].question
    predictions = [{"id": str(34600 + n), "prediction": f"Acme's {n}"} for n in range(20)]
    official.write_lines(tmp_path / "out" / "textvqa_test" / "predictions.jsonl", predictions)
    scores = score.score(Test(), tmp_path, tmp_path / "out")
    assert (scores["submission"], scores["metrics"]) == ("textvqa_test_evalai.json", {})
    sent = json.loads((tmp_path / "out" / "textvqa_test" / scores["submission"]).read_text("utf-8"))
    assert sorted(sent, key=lambda row: row["question_id"]) == [
        {"question_id": 34600 + n, "answer": f"Acme's {n}"} for n in range(20)
    ]


def test_bad_files_are_refused(data: Path) -> None:
    for changes, message in (
        ({"answers": ["x"] * 9}, r"TextVQA_0\.5\.1_val\.json\.data\[7\]\.answers: expected 10 items, got 9"),
        ({"answers": [1] * 10}, r"data\[7\]\.answers\[0\]: expected a text, got 1"),
        ({"question_id": 34603}, r"data\[7\]: '34603' was there before, at .*data\[3\]"),
        ({"question": None}, r"data\[7\]\.question: expected a text, got None"),
    ):
        write(data, [record(n, **changes) if n == 7 else record(n) for n in range(20)])
        official.check_record_refusal(Val(), data, message)
    write(data, [record(0, image_id="gone")])
    with pytest.raises(ValueError, match=r"data\[0\]: there are no OCR tokens of the picture 'gone'"):
        ValOcr().samples(data)
    official.check_refusals(Val(), data, "TextVQA_0.5.1_val.json")
