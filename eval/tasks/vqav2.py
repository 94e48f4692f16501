"""VQAv2: questions about COCO's photographs, ten answers each.

Papers report test-dev, which only EvalAI can score; val2014 is scored here. The two are not to be compared.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import vqa
from eval.metrics.textvqa import normalize
from eval.task import Sample, Scores, Task

ORIGIN = "https://visualqa.org/download.html (questions, annotations and the COCO pictures)"
ANNOTATORS = 10


class Val(Task):
    """val2014: 214,354 questions over 40,504 pictures, by the challenge's own rule."""

    name = "vqav2"
    variant = "val2014, rule of the VQA challenge"
    folder = "vqav2"
    prompt = "short"

    def samples(self, data: Path) -> Sequence[Sample]:
        expected = {name: record["multiple_choice_answer"].text() for name, record in _annotations(data).items()}
        samples = _samples(data, "val2014", "val2014", expected)
        if missing := [sample.id for sample in samples if sample.id not in expected]:
            raise ValueError(f"{data / _annotations_name()}: there is no annotation of question {missing[0]}")
        return samples

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        annotations = _annotations(data)
        each = {name: vqa.accuracy(text, _answers(annotations[name])) for name, text in predictions.items()}
        tables = {
            title: vqa.percent_by(each.values(), [annotations[name][key].text() for name in each])
            for title, key in (("answer type", "answer_type"), ("question type", "question_type"))
        }
        accuracy = vqa.percent(each.values())
        return Scores("accuracy", {"accuracy": accuracy}, {name: 100 * x for name, x in each.items()}, tables)


class TestDev(Task):
    """test-dev2015, without public answers: predictions become the file that EvalAI takes.

    The file has an answer to every question of test2015, "" where this split does not ask: EvalAI refuses any other set
    of questions.
    """

    name = "vqav2_test_dev"
    variant = "test-dev2015, scored by EvalAI"
    folder = "vqav2"
    prompt = "short"
    split = "test-dev2015"

    @property
    def scored_here(self) -> bool:
        return False

    def samples(self, data: Path) -> Sequence[Sample]:
        return _samples(data, self.split, "test2015")

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        raise ValueError(f"{self.name}: the answers are not public; EvalAI scores the file of the submission")

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str]:
        rows = [
            {"question_id": int(name), "answer": normalize(predictions.get(name, ""))}
            for name in _questions(data, "test2015")
        ]
        if left := predictions.keys() - {str(row["question_id"]) for row in rows}:
            raise ValueError(f"{data / _questions_name('test2015')}: there is no question {min(left)}")
        return f"{self.name}_evalai.json", json.dumps(rows)


class TestStandard(TestDev):
    """All of test2015, of which test-standard is a part that EvalAI knows."""

    name = "vqav2_test_std"
    variant = "test2015, scored by EvalAI"
    split = "test2015"


def _questions_name(split: str) -> str:
    return f"v2_OpenEnded_mscoco_{split}_questions.json"


def _annotations_name() -> str:
    return "v2_mscoco_val2014_annotations.json"


def _questions(data: Path, split: str) -> dict[str, files.Record]:
    file = files.read_json(data / _questions_name(split), ORIGIN)
    return files.unique(file["questions"].list(), lambda record: str(record["question_id"].integer()))


def _annotations(data: Path) -> dict[str, files.Record]:
    file = files.read_json(data / _annotations_name(), ORIGIN)
    return files.unique(file["annotations"].list(), lambda record: str(record["question_id"].integer()))


def _answers(record: files.Record) -> list[str]:
    return [answer["answer"].text() for answer in record["answers"].list(ANNOTATORS)]


def _samples(data: Path, split: str, pictures: str, expected: Mapping[str, str] | None = None) -> list[Sample]:
    """The questions of a split in the file's order, those about one picture side by side."""
    rows = [
        (name, record["image_id"].integer(), record["question"].text())
        for name, record in _questions(data, split).items()
    ]
    first = {picture: place for place, (_, picture, _) in reversed(list(enumerate(rows)))}
    return [
        Sample(
            name,
            prompts.fill("short", question=question),
            images=(data / pictures / f"COCO_{pictures}_{picture:012d}.jpg",),
            cluster=str(picture),
            expected="" if expected is None else expected.get(name, ""),
        )
        for name, picture, question in sorted(rows, key=lambda row: first[row[1]])
    ]
