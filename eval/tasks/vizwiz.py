"""VizWiz: questions that blind people asked about their own photographs; many cannot be answered from the picture.

Papers (LLaVA 1.5) report test-dev, which EvalAI scores; val is what can be scored here.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import textvqa, vizwiz, vqa
from eval.task import Sample, Scores, Task

ORIGIN = "the VizWiz VQA page, https://vizwiz.org/tasks-and-datasets/vqa/ (Annotations.zip and the pictures)"
ANNOTATORS = 10


class Val(Task):
    """val: 4,319 questions, one a picture. `accuracy` follows VizWiz's own code, `accuracy_vqa` the rule of VQAv2."""

    name = "vizwiz"
    variant = "val, rule of the VizWiz evaluation code"
    folder = "vizwiz"
    prompt = "short_or_unanswerable"
    max_new_tokens = 32
    split = "val"
    answered = True

    def samples(self, data: Path) -> Sequence[Sample]:
        found = []
        for id, record in self._records(data).items():
            answers = _answers(record) if self.answered else []
            found.append(
                Sample(
                    id,
                    prompts.fill(self.prompt, question=record["question"].text()),
                    images=(data / self.split / id,),
                    expected=max(answers, key=answers.count, default=""),
                )
            )
        return found

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        records = self._records(data)
        answers = {id: _answers(records[id]) for id in predictions}
        each = {id: vizwiz.accuracy(text, answers[id]) for id, text in predictions.items()}
        answerable = [_answerable(records[id]) for id in predictions]
        metrics = {
            "accuracy": vqa.percent(each.values()),
            "accuracy_vqa": vqa.percent(vqa.accuracy(text, answers[id]) for id, text in predictions.items()),
        }
        found = vizwiz.answerability(list(predictions.values()), answerable)
        metrics |= {f"unanswerable_{name}": round(100 * value, 2) for name, value in found.items()}
        kinds = [records[id]["answer_type"].text() for id in predictions]
        return Scores(
            main="accuracy",
            metrics=metrics,
            per_sample={id: 100 * value for id, value in each.items()},
            breakdown={"answer type": vqa.percent_by(each.values(), kinds)},
        )

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str]:
        """The JSON array that EvalAI's VizWiz challenge takes, with answers normalised as LLaVA's are."""
        rows = [{"image": id, "answer": textvqa.normalize(text)} for id, text in predictions.items()]
        return f"vizwiz_{self.split}_evalai.json", json.dumps(rows)

    def _records(self, data: Path) -> dict[str, files.Record]:
        file = files.read_json(data / f"{self.split}.json", ORIGIN)
        return files.unique(file.list(), lambda record: record["image"].text())


class Test(Val):
    """test: answers are not public."""

    name = "vizwiz_test"
    variant = "test, scored by EvalAI"
    split = "test"
    answered = False

    @property
    def scored_here(self) -> bool:
        return False


def _answers(record: files.Record) -> list[str]:
    return [item["answer"].text() for item in record["answers"].list(ANNOTATORS)]


def _answerable(record: files.Record) -> bool:
    value = record["answerable"].integer()
    if value not in (0, 1):
        raise record["answerable"].error(f"{value}, expected 0 or 1")
    return bool(value)
