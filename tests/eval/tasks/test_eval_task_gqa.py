"""GQA from its official files: twenty questions on four pictures, scores by hand."""

import json
from pathlib import Path
from typing import Any

import pytest

from eval.tasks.gqa import TestDev, Val, ValAll
from tests.eval import official

COLORS = ("red", "blue", "green", "white")


def question(number: int, **changes: Any) -> dict[str, Any]:
    """Odd numbers are yes-no questions, even ones ask for a colour; every fourth is on the same picture."""
    verify = number % 2 == 1
    record = {
        "imageId": f"n{number % 4}",
        "question": f"Is thing {number} red?" if verify else f"What is the color of thing {number}?",
        "answer": "yes" if verify else COLORS[number // 2 % 4],
        "fullAnswer": "Yes.",
        "isBalanced": True,
        "groups": {"global": None if verify else "color", "local": "1-x"},
        "entailed": [],
        "equivalent": [f"{number:03}"],
        "types": {
            "structural": "verify" if verify else "query",
            "semantic": "attr",
            "detailed": "verifyAttr" if verify else "directWhich",
        },
        "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
        "semantic": [
            {"operation": "select", "argument": "thing (1)", "dependencies": []},
            {"operation": "exist", "argument": "?", "dependencies": [0]}
            if verify
            else {"operation": "query", "argument": "color", "dependencies": [0]},
        ],
        "semanticStr": "select: thing (1)->",
    }
    return {**record, **changes}


def twenty(**changes: dict[str, Any]) -> dict[str, Any]:
    return {f"{n:03}": question(n, **changes.get(f"q{n:03}", {})) for n in range(20)}


def right(questions: dict[str, Any]) -> dict[str, str]:
    return {id: record["answer"] for id, record in questions.items()}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "gqa"
    official.write(folder / "testdev_balanced_questions.json", twenty())
    return folder


def test_samples_are_asked_as_llava_asks(data: Path) -> None:
    sample = official.check_samples(TestDev(), data, 20)["006"]
    assert sample.question == "What is the color of thing 6?\nAnswer the question using a single word or phrase."
    assert sample.images == (data / "images" / "n2.jpg",)
    assert (sample.cluster, sample.expected) == ("n2", "white")


def test_scores_equal_a_count_by_hand(data: Path) -> None:
    answers = right(twenty()) | {"001": "Yes.", "003": "no", "004": "Green", "006": "blue", "008": " red"}
    # 001 and 004 count only after conversion; 003, 006 and 008 never: 17 and 15 of 20.
    # Colours: red 000 008 016, blue 002 010 018, green 004 012, white 006 014. Of red two are said (one with a space),
    # of white one, of blue four: chi square is 1/3 + 1/3 + 0 + 1/2.
    expected = {
        "accuracy": 85,
        "accuracy_raw": 75,
        "binary": 90,
        "open": 80,
        "distribution": (1 / 3 + 1 / 3 + 1 / 2) / 100,
    }
    official.check_scores(TestDev(), data, answers, expected)
    scores = TestDev().score(data, answers)
    assert set(scores.metrics) == set(expected)
    assert scores.breakdown["structural type"] == {"query": 80, "verify": 90}
    assert scores.breakdown["steps"] == {"1": 90, "2": 80}
    assert scores.breakdown["words"] == {"4": 90, "7": 80}
    assert scores.breakdown["semantic type"] == {"attr": 85}


def test_submission_is_what_the_official_script_reads(data: Path) -> None:
    name, text = TestDev().submission(data, {"000": "Red.", "001": "yes"})
    assert name == "testdev_predictions.json"
    assert json.loads(text) == [{"questionId": "000", "prediction": "red"}, {"questionId": "001", "prediction": "yes"}]


def write_val(folder: Path) -> dict[str, Any]:
    """Question 000 implies 001 and 003, 003 implies itself only, 005 (unbalanced) is implied by 002."""
    questions = twenty(
        q000={"entailed": ["000", "001", "003"]},
        q002={"entailed": ["005"], "types": {"structural": "query", "semantic": "attr", "detailed": "twoCommon"}},
        q003={"entailed": ["003"]},
        q005={"isBalanced": False, "entailed": ["000"]},
    )
    balanced = {id: record for id, record in questions.items() if record["isBalanced"]}
    choices = {id: {"valid": ["yes", "no", *COLORS], "plausible": [questions[id]["answer"]]} for id in balanced}
    official.write(folder / "val_all_questions.json", questions)
    official.write(folder / "val_balanced_questions.json", balanced)
    official.write(folder / "val_choices.json", choices)
    return questions


def test_val_has_validity_plausibility_and_consistency(tmp_path: Path) -> None:
    questions = write_val(tmp_path)
    answers = right(questions) | {"002": "shape", "003": "no", "004": "seven"}
    # 16 of 19 are right. "seven" alone is not valid: "shape" is, of things in common.
    # 003 and 004 are not plausible, "shape" is. Of the questions answered rightly only 000 implies others: two, one of
    # them answered rightly.
    expected = {"accuracy": 1600 / 19, "validity": 1800 / 19, "plausibility": 1700 / 19}
    balanced = {id: text for id, text in answers.items() if id != "005"}
    official.check_scores(Val(), tmp_path, balanced, expected)
    official.check_scores(ValAll(), tmp_path, answers, {**expected, "consistency": 50})
    official.check_scores(ValAll(), tmp_path, answers | {"002": "blue", "005": "no"}, {"consistency": 25})
    assert "consistency" not in Val().score(tmp_path, balanced).metrics


def test_part_of_the_questions_has_no_consistency(tmp_path: Path) -> None:
    write_val(tmp_path)
    metrics = ValAll().score(tmp_path, {"000": "red", "005": "no"}).metrics
    assert metrics["accuracy"] == 100
    assert "consistency" not in metrics
    with pytest.raises(ValueError, match="no prediction is of a balanced question"):
        ValAll().score(tmp_path, {"005": "yes"})


def test_a_file_without_what_its_questions_imply_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    questions = write_val(tmp_path)
    questions["005"]["entailed"] = ["gone"]  # which does not count: this one is not balanced
    official.write(tmp_path / "val_all_questions.json", questions)
    assert ValAll().score(tmp_path, right(questions)).metrics["consistency"] == 100
    del questions["001"]
    official.write(tmp_path / "val_all_questions.json", questions)
    message = r"val_all_questions\.json\.000\.entailed\[1\]: there is no question '001', expected all questions"
    with pytest.raises(ValueError, match=message):
        ValAll().samples(tmp_path)


def test_bad_files_are_refused(data: Path) -> None:
    for changes, message in (
        ({"answer": 7}, r"testdev_balanced_questions\.json\.007\.answer: expected a text, got 7"),
        ({"imageId": None}, r"\.007\.imageId"),
        ({"groups": {}}, r"\.007\.groups: there is no 'global'"),
        ({"isBalanced": "yes"}, r"\.007\.isBalanced: expected true or false"),
    ):
        official.write(data / "testdev_balanced_questions.json", twenty(q007=changes))
        official.check_record_refusal(TestDev(), data, message)
    official.check_refusals(TestDev(), data, "testdev_balanced_questions.json")


def test_a_question_without_choices_is_named(tmp_path: Path) -> None:
    questions = write_val(tmp_path)
    official.write(tmp_path / "val_choices.json", {"000": {"valid": [], "plausible": []}})
    with pytest.raises(ValueError, match=r"val_choices\.json: there is no '001'"):
        Val().score(tmp_path, {id: "yes" for id in questions if id != "005"})
