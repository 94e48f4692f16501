"""ClothoAQA: questions about sounds, each answered in a word by three people.

Two of three questions want a yes or a no. People often disagree, so the score is given three ways: against every
person's answer, against the answer of most of them, and on the questions on which all three agree.
"""

import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.task import Sample, Scores, Task

ORIGIN = "https://zenodo.org/records/6473207 (ClothoAQA)"
TABLE, SOUNDS = "clotho_aqa_test.csv", "audio_files"


@dataclass(frozen=True)
class Question:
    sound: str
    text: str
    answers: tuple[str, ...]

    @property
    def kind(self) -> str:
        return "yes/no" if set(self.answers) <= {"yes", "no"} else "single word"

    @property
    def most(self) -> tuple[str, int]:
        """The commonest answer, and how many people gave it."""
        return Counter(self.answers).most_common(1)[0]


class ClothoAQA(Task):
    name = "clothoaqa"
    variant = "test split; an answer is right for each person who gave it, case and punctuation aside"
    folder = "clothoaqa"
    prompt = "short"

    def samples(self, data: Path) -> Sequence[Sample]:
        return [
            Sample(
                id=name,
                question=prompts.fill(self.prompt, question=question.text),
                sounds=(data / SOUNDS / question.sound,),
                cluster=question.sound,
                expected=question.most[0],
            )
            for name, question in questions(data).items()
        ]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        known = questions(data)
        each, tables = {}, {name: Table() for name in ("all", "yes/no", "single word")}
        for name, prediction in predictions.items():
            question, said = known[name], normalize(prediction)
            each[name] = 100 * question.answers.count(said) / len(question.answers)
            for table in (tables["all"], tables[question.kind]):
                table.add(question, said)
        breakdown = {name: table.scores() for name, table in tables.items()}
        return Scores(
            main="accuracy",
            metrics={
                "accuracy": sum(each.values()) / len(each),
                **{f"{name} {row}": value for name, rows in breakdown.items() for row, value in rows.items()},
            },
            per_sample=each,
            breakdown=breakdown,
        )


class Table:
    """Right answers and questions, by how far people agree."""

    def __init__(self) -> None:
        self.right: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()

    def add(self, question: Question, said: str) -> None:
        answer, people = question.most
        rows = [("answers", question.answers.count(said), len(question.answers))]
        if 2 * people > len(question.answers):
            rows.append(("majority", said == answer, 1))
        if people == len(question.answers):
            rows.append(("unanimous", said == answer, 1))
        for row, right, asked in rows:
            self.right[row] += right
            self.asked[row] += asked

    def scores(self) -> dict[str, float]:
        """In percent, with how many there were."""
        shares = {row: 100 * self.right[row] / asked for row, asked in self.asked.items()}
        return {**shares, **{f"{row} (n)": float(asked) for row, asked in self.asked.items()}}


def questions(data: Path) -> dict[str, Question]:
    """The questions by sound and words; every answer has a row."""
    found: dict[tuple[str, str], list[str]] = {}
    for row in files.read_csv(data / TABLE, ORIGIN):
        answer = normalize(row["answer"].text())
        if not answer:
            raise row.error("the answer is empty")
        found.setdefault((row["file_name"].text(), row["QuestionText"].text()), []).append(answer)
    return {f"{sound}: {text}": Question(sound, text, tuple(answers)) for (sound, text), answers in found.items()}


def normalize(text: str) -> str:
    """Lower case, no punctuation, single spaces."""
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())
