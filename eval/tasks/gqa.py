"""GQA: questions that scene graphs generated about photographs, with the official scores of eval.py.

Papers report the accuracy on testdev_balanced of answers in lower case without a final period, as LLaVA prepares them;
`accuracy_raw` compares the text as it came.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import gqa
from eval.metrics.mean import mean
from eval.task import Sample, Scores, Task

ORIGIN = "questions1.2.zip on the GQA download page, https://cs.stanford.edu/people/dorarad/gqa/download.html"
CHOICES_ORIGIN = "eval.zip on the GQA evaluation page, https://cs.stanford.edu/people/dorarad/gqa/evaluate.html"


class TestDev(Task):
    """testdev_balanced: 12,578 questions, what papers report."""

    name = "gqa"
    variant = "testdev_balanced, answers in lower case without final periods"
    folder = "gqa"
    prompt = "short"
    tier = "testdev"
    questions_file = "testdev_balanced_questions.json"

    def samples(self, data: Path) -> Sequence[Sample]:
        found = []
        for id, record in self._records(data).items():
            picture = record["imageId"].name()
            found.append(
                Sample(
                    id,
                    prompts.fill(self.prompt, question=record["question"].text()),
                    images=(data / "images" / f"{picture}.jpg",),
                    cluster=picture,
                    expected=record["answer"].text(),
                )
            )
        return sorted(found, key=lambda sample: sample.cluster)  # questions on one picture one after another

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        questions = {id: _question(record) for id, record in self._records(data).items()}
        converted = {id: gqa.convert(text, "llava") for id, text in predictions.items()}
        asked = [id for id, question in questions.items() if question.balanced and id in predictions]
        if not asked:
            raise ValueError(f"{self.name}: no prediction is of a balanced question, and only these count")
        metrics = gqa.scores(questions, converted, self._choices(data, asked))
        metrics["accuracy_raw"] = 100 * mean(gqa.correct(predictions[id], questions[id].answer) for id in asked)
        metrics |= self._consistency(questions, converted)
        return Scores(
            main="accuracy",
            metrics=metrics,
            per_sample={id: 100.0 * (converted[id] == questions[id].answer) for id in asked},
            breakdown=gqa.tables(questions, converted),
        )

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str]:
        """What the official eval.py reads as --predictions."""
        rows = [{"questionId": id, "prediction": gqa.convert(text, "llava")} for id, text in predictions.items()]
        return f"{self.tier}_predictions.json", json.dumps(rows)

    def _records(self, data: Path) -> dict[str, files.Record]:
        return dict(files.read_json(data / self.questions_file, ORIGIN).items())

    def _choices(self, data: Path, ids: Sequence[str]) -> dict[str, gqa.Choices] | None:
        return None  # there is no such file for testdev

    def _consistency(self, questions: Mapping[str, gqa.Question], predictions: Mapping[str, str]) -> dict[str, float]:
        return {}  # entailed questions are not among the balanced ones


class Val(TestDev):
    """val_balanced, with validity and plausibility."""

    name = "gqa_val"
    variant = "val_balanced, answers in lower case without final periods"
    tier = "val"
    questions_file = "val_balanced_questions.json"

    def _choices(self, data: Path, ids: Sequence[str]) -> dict[str, gqa.Choices]:
        found = files.read_json(data / "val_choices.json", CHOICES_ORIGIN)
        return {
            id: gqa.Choices(frozenset(found[id]["valid"].texts()), frozenset(found[id]["plausible"].texts()))
            for id in ids
        }


class ValAll(Val):
    """All questions of val, which consistency needs; the other scores are of the balanced ones, as in `Val`."""

    name = "gqa_val_all"
    variant = "val_all with consistency, answers in lower case without final periods"
    questions_file = "val_all_questions.json"

    def _records(self, data: Path) -> dict[str, files.Record]:
        """A ValueError names a balanced question that implies one which is not there."""
        records = super()._records(data)
        for record in records.values():
            if record["isBalanced"].flag():
                for other in record["entailed"].list():
                    if other.text() not in records:
                        raise other.error(f"there is no question {other.text()!r}, expected all questions of the split")
        return records

    def _consistency(self, questions: Mapping[str, gqa.Question], predictions: Mapping[str, str]) -> dict[str, float]:
        if len(predictions) < len(questions):
            return {}  # a limited run lacks questions that answers imply
        value = gqa.consistency(questions, predictions)
        return {} if value is None else {"consistency": value}


def _question(record: files.Record) -> gqa.Question:
    types, group = record["types"], record["groups"]["global"]
    return gqa.Question(
        answer=record["answer"].text(),
        balanced=record["isBalanced"].flag(),
        structural=types["structural"].text(),
        semantic=types["semantic"].text(),
        detailed=types["detailed"].text(),
        steps=gqa.steps((step["operation"].text(), step["argument"].text()) for step in record["semantic"].list()),
        words=len(record["question"].text().split()),
        group=None if group.value is None else group.text(),
        entailed=record["entailed"].texts(),
    )
