"""POPE from its official files: 3 x 6 questions on three pictures by hand, and the real ones where they are."""

import random
from pathlib import Path
from typing import Any

import pytest

from eval import score
from eval.tasks.pope import CATEGORIES, Pope
from tests.eval import official


def row(category: str, number: int, **changes: Any) -> dict[str, Any]:
    return {
        "question_id": number,
        "image": f"COCO_val2014_{(number - 1) // 2:012}.jpg",
        "text": f"Is there a {category} thing {number} in the image?",
        "label": "yes" if number % 2 else "no",
        **changes,
    }


def write(folder: Path, **changes: Any) -> None:
    for category in CATEGORIES:
        rows = [row(category, n, **changes) if n == 3 else row(category, n) for n in range(1, 7)]
        official.write_lines(folder / f"coco_pope_{category}.json", rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write(tmp_path / "pope")
    return tmp_path / "pope"


def test_samples_of_all_three_files(data: Path) -> None:
    sample = official.check_samples(Pope(), data, 18)["popular/3"]
    question = "Is there a popular thing 3 in the image?\nAnswer the question using a single word or phrase."
    assert sample.question == question
    assert sample.images == (data / "val2014" / "COCO_val2014_000000000001.jpg",)
    assert sample.expected == "yes"


def test_scores_equal_a_count_by_hand(data: Path) -> None:
    answers = {sample.id: sample.expected.capitalize() for sample in Pope().samples(data)}
    answers |= {
        "popular/2": "None",
        "popular/4": "no\n",
        "adversarial/1": "I do not know",
        "random/2": "No, it is not.",
    }
    expected = {
        "f1_random": 100,
        "f1_popular": 75,  # "None" and "no\n" count as yes: precision 3/5, recall 1
        "f1_adversarial": 80,  # precision 1, recall 2/3
        "f1": 85,
        "accuracy_popular": 400 / 6,
        "precision_popular": 60,
        "recall_adversarial": 200 / 3,
        "yes_ratio_popular": 500 / 6,
        "yes_ratio_adversarial": 200 / 6,
    }
    official.check_scores(Pope(), data, answers, expected)
    scores = Pope().score(data, answers)
    assert scores.breakdown["category"] == pytest.approx({"random": 100, "popular": 75, "adversarial": 80})
    assert scores.corpus["f1"](list(answers)) == pytest.approx(85)
    assert scores.corpus["f1"](["popular/2", "popular/2", "popular/1"]) == pytest.approx(50)
    assert scores.notes == ("Rows scored: random 6, popular 6, adversarial 6.",)


def test_predictions_of_anyone_are_scored(data: Path, tmp_path: Path) -> None:
    rows = [{"id": sample.id, "prediction": sample.expected} for sample in Pope().samples(data)]
    official.write_lines(tmp_path / "out" / "pope" / "predictions.jsonl", rows)
    scores = score.score(Pope(), tmp_path, tmp_path / "out")
    assert scores["metrics"]["f1"] == 100
    assert scores["stderr"] == {"f1_bootstrap": 0}
    official.write_lines(tmp_path / "out" / "pope" / "predictions.jsonl", rows[:-1])
    with pytest.raises(ValueError, match="adversarial/6"):
        score.score(Pope(), tmp_path, tmp_path / "out")
    part = score.score(Pope(), tmp_path, tmp_path / "out", partial=True)
    assert (part["n"], part["partial"]) == (17, True)


def test_bad_files_are_refused(data: Path) -> None:
    for changes, message in (
        ({"label": "Yes"}, r"coco_pope_random\.json, line 3\.label: 'Yes', expected one of yes, no"),
        ({"question_id": 2}, r"coco_pope_random\.json, line 3: '2' was there before, at .*line 2"),
        ({"text": 5}, r"line 3\.text: expected a text, got 5"),
    ):
        write(data, **changes)
        official.check_record_refusal(Pope(), data, message)
    official.check_refusals(Pope(), data, "coco_pope_adversarial.json")


def test_the_published_questions_are_read(data_dir: Path, tmp_path: Path, seed: int) -> None:
    for category in CATEGORIES:
        (tmp_path / f"coco_pope_{category}.json").symlink_to(data_dir / "pope" / f"pope_{category}.json")
    samples = Pope().samples(tmp_path)
    assert len(samples) == 9000
    assert len({sample.cluster for sample in samples}) == 500
    dice = random.Random(seed)
    answers = {sample.id: sample.expected if dice.random() < 0.8 else "yes" for sample in samples}
    scores = Pope().score(tmp_path, answers)
    for category in CATEGORIES:
        pairs = [(answers[s.id], s.expected) for s in samples if s.id.startswith(category)]
        hits, misses = pairs.count(("yes", "yes")), pairs.count(("no", "yes")) + pairs.count(("yes", "no"))
        assert scores.metrics[f"f1_{category}"] == pytest.approx(200 * hits / (2 * hits + misses)), f"seed {seed}"
    assert scores.notes == ("Rows scored: random 3,000, popular 3,000, adversarial 3,000.",)
