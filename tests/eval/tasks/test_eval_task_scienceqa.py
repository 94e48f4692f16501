"""ScienceQA-IMG from its official files: twenty of thirty problems are of the test split and have a picture."""

from pathlib import Path
from typing import Any

import pytest

from eval.tasks.scienceqa import TestImages
from tests.eval import official

SUBJECTS = ("natural science", "social science", "language science")


def problem(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question": f"Which is number {number}?",
        "choices": ["the first", "the second", "the third"][: 2 + number % 2],
        "answer": number % 2,
        "hint": f"Count {number}." if number % 3 == 0 else "",
        "image": None if number % 3 == 2 else "image.png",
        "task": "closed choice",
        "grade": f"grade{2 + number % 4}",
        "subject": SUBJECTS[number % 2],
        "topic": "counting",
        "category": "",
        "skill": "",
        "lecture": "",
        "solution": "",
        "split": "test",
        **changes,
    }


def write(folder: Path, **changes: Any) -> None:
    problems = {str(n): problem(n, **changes) if n == 7 else problem(n) for n in range(32)}
    official.write(folder / "problems.json", problems)
    official.write(folder / "pid_splits.json", {"train": ["31"], "val": [], "test": [str(n) for n in range(30)]})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path)
    return tmp_path


def test_samples_are_multiple_choice(data: Path) -> None:
    samples = official.check_samples(TestImages(), data, 20)
    end = "Answer with the option's letter from the given choices directly."
    assert samples["3"].question.split("\n") == [
        *("Context: Count 3.", "Which is number 3?", "A. the first", "B. the second", "C. the third", end)
    ]
    assert samples["4"].question.split("\n") == ["Which is number 4?", "A. the first", "B. the second", end]
    assert samples["3"].images == (data / "images" / "test" / "3" / "image.png",)
    assert (samples["3"].expected, samples["4"].expected) == ("B", "A")


def test_scores_equal_a_count_by_hand(data: Path) -> None:
    ids = [n for n in range(30) if n % 3 != 2]
    answers = {str(n): "AB"[n % 2] for n in ids}
    answers |= {"0": "A. the first", "1": "The answer is B.", "3": "C", "4": "C", "6": "the first", "7": "b"}
    official.check_scores(TestImages(), data, answers, {"accuracy": 80})  # wrong: 3, 4, 6 and 7
    scores = TestImages().score(data, answers)
    assert scores.breakdown["subject"] == {"natural science": 80, "social science": 80}
    # 0, 4, 12, 16, 24, 28 are of grade 2; 3, 7, 15, 19, 27 of grade 5.
    assert list(scores.breakdown["grade"]) == ["2", "3", "4", "5"]
    assert scores.breakdown["grade"]["2"] == pytest.approx(500 / 6)
    assert scores.breakdown["grade"]["5"] == 60
    assert scores.notes == ("2 of 20 answers name no option and count as wrong.",)


def test_bad_files_are_refused(data: Path) -> None:
    for changes, message in (
        ({"answer": 3}, r"problems\.json\.7\.answer: 3 is none of the 3 choices"),
        ({"choices": ["x"] * 6}, r"problems\.json\.7\.choices: 6 choices, expected at most 5"),
        ({"grade": "second"}, r"problems\.json\.7\.grade: 'second', expected grade1 to grade12"),
        ({"hint": None}, r"problems\.json\.7\.hint: expected a text, got None"),
    ):
        write(data, **changes)
        official.check_record_refusal(TestImages(), data, message)
    write(data)
    official.write(data / "pid_splits.json", {"test": ["1", "3", "1"]})
    official.check_record_refusal(TestImages(), data, r"pid_splits\.json\.test\[2\]: '1' was there before")
    official.write(data / "pid_splits.json", {"test": ["1", "99"]})
    official.check_record_refusal(TestImages(), data, r"problems\.json: there is no '99'")
    official.check_refusals(TestImages(), data, "problems.json")
