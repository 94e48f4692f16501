"""ScienceQA-IMG: the multiple-choice questions of the test split that have a picture (2,017)."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import scienceqa
from eval.metrics.mean import mean, mean_by
from eval.task import Sample, Scores, Task

ORIGIN = "the ScienceQA repository, https://github.com/lupantech/ScienceQA (data/scienceqa and its pictures)"


class TestImages(Task):
    """Question, hint and options in, a letter out, read as LLaVA reads it."""

    name = "scienceqa"
    variant = "test questions with a picture (IMG), answered by a letter"
    folder = "scienceqa"
    prompt = "letter"

    def samples(self, data: Path) -> Sequence[Sample]:
        found = []
        for id, record in self._records(data).items():
            choices = record["choices"].texts()
            hint = record["hint"].text()
            lines = [
                *([f"Context: {hint}"] if hint else []),
                record["question"].text(),
                *(f"{letter}. {choice}" for letter, choice in zip(scienceqa.LETTERS, choices, strict=False)),
            ]
            picture = data / "images" / "test" / id / record["image"].text()
            found.append(
                Sample(
                    id,
                    prompts.fill(self.prompt, question="\n".join(lines)),
                    images=(picture,),
                    expected=scienceqa.LETTERS[_answer(record)],
                )
            )
        return found

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        records = self._records(data)
        each = {}
        for id, text in predictions.items():
            index = scienceqa.parse(text, len(records[id]["choices"].list()))
            each[id] = 100.0 * (index == _answer(records[id]))
        rows = [records[id] for id in predictions]
        grades = [_grade(record) for record in rows]
        unread = sum(scienceqa.parse(text, len(scienceqa.LETTERS)) < 0 for text in predictions.values())
        return Scores(
            main="accuracy",
            metrics={"accuracy": mean(each.values())},
            per_sample=each,
            breakdown={
                "subject": mean_by(each.values(), [record["subject"].text() for record in rows]),
                "grade": {str(g): value for g, value in mean_by(each.values(), grades).items()},
            },
            notes=(f"{unread} of {len(each)} answers name no option and count as wrong.",) if unread else (),
        )

    def _records(self, data: Path) -> dict[str, files.Record]:
        problems = files.read_json(data / "problems.json", ORIGIN)
        test = files.unique(files.read_json(data / "pid_splits.json", ORIGIN)["test"].list(), files.Record.name)
        chosen = {id: problems[id] for id in test}
        return {id: record for id, record in chosen.items() if record["image"].value is not None}


def _answer(record: files.Record) -> int:
    index, count = record["answer"].integer(), len(record["choices"].list())
    if count > len(scienceqa.LETTERS):
        raise record["choices"].error(f"{count} choices, expected at most {len(scienceqa.LETTERS)}")
    if not 0 <= index < count:
        raise record["answer"].error(f"{index} is none of the {count} choices")
    return index


def _grade(record: files.Record) -> int:
    text = record["grade"].text()
    if not text.removeprefix("grade").isdecimal():
        raise record["grade"].error(f"{text!r}, expected grade1 to grade12")
    return int(text.removeprefix("grade"))
