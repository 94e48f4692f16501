import json
from pathlib import Path
from typing import Any

import pytest

from eval.report import report
from eval.score import score
from eval.tasks import vqav2
from tests.eval.official import check_refusals, check_samples, check_scores, write

QUESTIONS = "v2_OpenEnded_mscoco_{}_questions.json"
ANNOTATIONS = "v2_mscoco_val2014_annotations.json"
# question, the answer of so many annotators, then the rest's, a prediction, its accuracy by hand
ROWS: list[tuple[str, str, int, str, str, float]] = [
    ("What colour is the bus?", "red", 10, "", "red", 100),
    ("What colour is the car?", "red", 10, "", "Red.", 0),  # all agree: compared as they are
    ("What colour is the van?", "red", 9, "dark red", "Red.", 100),
    ("How many dogs are there?", "2", 6, "two", "two", 100),
    ("How many cats are there?", "none", 5, "0", "0", 100),
    ("Is it raining?", "no", 1, "yes", "no", 30),
    ("Is it sunny?", "no", 2, "yes", "no", 60),
    ("Is it late?", "no", 3, "yes", "no.", 90),
    ("Is it early?", "no", 4, "yes", "NO", 100),
    ("What is this?", "a dog", 8, "puppy", "the dog", 100),
    ("What is that?", "a dog", 8, "puppy", "cat", 0),
    ("Where is it?", "on the table", 7, "table", "on table", 100),
    ("Who is there?", "dont know", 5, "nobody", "don't know", 100),
    ("What time is it?", "3:30", 4, "half past 3", "3:30", 100),
    ("What is the price?", "1,000", 6, "1000", "1,000", 100),
    ("What brand is it?", "coca-cola", 5, "coca cola", "coca cola", 100),
    ("What number is on the bus?", "3.5", 9, "3", "3.5", 100),
    ("Is the man smiling?", "yes", 10, "", "", 0),
    ("Is the dog smiling?", "yes", 10, "", "yes", 100),
    ("Is the cat smiling?", "yes", 9, "maybe", "maybe", 30),
]


def kind(number: int) -> str:
    return ("yes/no", "number", "other")[number % 3]


def write_val(data: Path) -> dict[str, str]:
    """Twenty questions about five pictures, as downloaded; predictions by id."""
    questions: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (question, answer, count, other, _, _) in enumerate(ROWS):
        ids = {"question_id": 262148000 + number, "image_id": 262148 + number % 5}
        answers = [answer] * count + [other] * (10 - count)
        questions.append({**ids, "question": question})
        annotations.append(
            {
                **ids,
                "question_type": question.split()[0].lower(),
                "answer_type": kind(number),
                "multiple_choice_answer": answer,
                "answers": [
                    {"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(answers, 1)
                ],
            }
        )
    write(data / QUESTIONS.format("val2014"), {"info": {}, "task_type": "Open-Ended", "questions": questions})
    write(data / ANNOTATIONS, {"info": {}, "annotations": annotations})
    return {str(262148000 + number): row[4] for number, row in enumerate(ROWS)}


def test_val_is_scored_by_the_challenges_rule(tmp_path: Path) -> None:
    predictions = write_val(tmp_path)
    by_hand = [row[5] for row in ROWS]
    samples = check_samples(vqav2.Val(), tmp_path, 20)
    first = samples["262148000"]
    assert first.question == "What colour is the bus?\nAnswer the question using a single word or phrase."
    assert first.images == (tmp_path / "val2014" / "COCO_val2014_000000262148.jpg",)
    assert first.expected == "red"
    check_scores(vqav2.Val(), tmp_path, predictions, {"accuracy": round(sum(by_hand) / 20, 2)})
    scores = vqav2.Val().score(tmp_path, predictions)
    assert list(scores.per_sample.values()) == pytest.approx(by_hand)
    for number, name in enumerate(("yes/no", "number", "other")):
        assert scores.breakdown["answer type"][name] == round(sum(by_hand[number::3]) / len(by_hand[number::3]), 2)
    assert scores.breakdown["question type"]["how"] == 100


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a[3]["answers"].pop(), r"annotations\[3\]\.answers: expected 10 items, got 9"),
        (
            lambda a: a[4]["answers"][2].update(answer=5),
            r"annotations\[4\]\.answers\[2\]\.answer: expected a text, got 5",
        ),
        (lambda a: a.append(a[0]), r"annotations\[20\]: '262148000' was there before"),
        (lambda a: a[0].update(question_id="x"), r"annotations\[0\]\.question_id: expected a whole number"),
        (lambda a: a.pop(), "there is no annotation of question 262148019"),
    ],
)
def test_hostile_annotations_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    predictions = write_val(tmp_path)
    path = tmp_path / ANNOTATIONS
    value = json.loads(path.read_text())
    change(value["annotations"])
    write(path, value)
    with pytest.raises(ValueError, match=message) as caught:
        _read_and_score(tmp_path, predictions)
    assert ANNOTATIONS in str(caught.value)


def _read_and_score(data: Path, predictions: dict[str, str]) -> None:
    vqav2.Val().samples(data)
    vqav2.Val().score(data, predictions)


def test_hostile_files_are_refused(tmp_path: Path) -> None:
    write_val(tmp_path)
    check_refusals(vqav2.Val(), tmp_path, QUESTIONS.format("val2014"))


def test_test_dev_becomes_what_evalai_takes(tmp_path: Path) -> None:
    """EvalAI wants an array with every question of test2015 once, answers normalised, "" where the split asks none."""
    data = tmp_path / "data" / "vqav2"
    rows = [{"question_id": i, "image_id": 1 + i // 5, "question": f"What is {i}?"} for i in range(20)]
    write(data / QUESTIONS.format("test2015"), {"questions": rows})
    write(data / QUESTIONS.format("test-dev2015"), {"questions": rows[::4]})
    samples = check_samples(vqav2.TestDev(), data, 5)
    assert samples["4"].images == (data / "test2015" / "COCO_test2015_000000000001.jpg",)
    folder = tmp_path / "out" / "vqav2_test_dev"
    folder.mkdir(parents=True)
    lines = [{"id": name, "prediction": "The Red, Bus."} for name in samples]
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score(vqav2.TestDev(), tmp_path / "data", tmp_path / "out")
    assert found["metrics"] == {}
    assert found["main"] is None
    sent = json.loads((folder / found["submission"]).read_text())
    assert sent == [{"question_id": i, "answer": "" if i % 4 else "red bus"} for i in range(20)]
    page = report([vqav2.TestDev()], tmp_path / "data", tmp_path / "out").read_text()
    assert "not scored here" in page
    assert found["submission"] in page
    assert page.count("<figure><img") == 5
    assert len(vqav2.TestStandard().samples(data)) == 20
