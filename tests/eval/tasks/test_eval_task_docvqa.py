"""DocVQA from its official files: twenty questions on five pages."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.tasks.docvqa import Test, Val
from tests.eval import official


def record(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "questionId": 49000 + number,
        "question": f"What is the total of line {number}?",
        "question_types": ["table/list"],
        "image": f"documents/page_{number % 5}.png",
        "docId": number % 5,
        "ucsf_document_id": "abcd0001",
        "ucsf_document_page_no": "1",
        "answers": [f"${number:04}.50", f"{number:04}.50"],
        "data_split": "val",
        **changes,
    }


def write(folder: Path, **changes: Any) -> None:
    rows = [record(n, **changes) if n == 7 else record(n) for n in range(20)]
    official.write(folder / Val.questions_file, {"dataset_name": "docvqa", "dataset_split": "val", "data": rows})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_samples_name_pages(data: Path) -> None:
    sample = official.check_samples(Val(), data, 20)["49008"]
    assert sample.question.startswith("What is the total of line 8?\nAnswer")
    assert sample.images == (data / "spdocvqa_images" / "page_3.png",)
    assert sample.expected == "$0008.50"


def test_scores_equal_a_count_by_hand(data: Path) -> None:
    answers = {str(49000 + n): f"${n:04}.50" for n in range(20)}
    # One letter of seven is wrong; three of eight; all (below a half counts as nothing).
    answers |= {"49000": "0000.51", "49001": "$0001,40 ".strip(), "49002": "none"}
    expected = 100 * (17 + 6 / 7 + 6 / 8 + 0) / 20
    official.check_scores(Val(), data, answers, {"anls": expected})


def test_test_split_becomes_a_file_for_the_server(tmp_path: Path) -> None:
    rows = [record(n) for n in range(20)]
    for row in rows:
        del row["answers"]
    official.write(tmp_path / "spdocvqa_qas" / "test_v1.0.json", {"data": rows})
    official.check_samples(Test(), tmp_path, 20)
    assert not Test().scored_here
    name, text = Test().submission(tmp_path, {"49000": "$5"})
    assert name == "docvqa_test_rrc.json"
    assert json.loads(text) == [{"questionId": 49000, "answer": "$5"}]


def test_bad_files_are_refused(data: Path) -> None:
    for changes, message in (
        ({"answers": []}, r"val_v1\.0_withQT\.json\.data\[7\]\.answers: no answers, expected at least one"),
        ({"answers": [1.5]}, r"data\[7\]\.answers\[0\]: expected a text, got 1\.5"),
        ({"questionId": "49007"}, r"data\[7\]\.questionId: expected a whole number"),
        ({"questionId": 49003}, r"data\[7\]: '49003' was there before"),
    ):
        write(data, **changes)
        official.check_record_refusal(Val(), data, message)
    official.check_refusals(Val(), data, "spdocvqa_qas/val_v1.0_withQT.json")
