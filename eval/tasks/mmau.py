"""MMAU test-mini: 1,000 questions about sounds, speech and music, each with its choices.

An answer is right if every word of the right choice is in it and no word that only wrong choices have: the rule of
`string_match` in evaluation.py of https://github.com/Sakshi113/MMAU. The questions were revised in May 2025
(MMAU-v05.15.25) under the same file name, so the score names the file's hash.
"""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval import files, prompts
from eval.choosing import best, choose
from eval.task import Mode, Sample, Scores, Task

if TYPE_CHECKING:
    from mm_rwkv7.pipeline import Pipeline

ORIGIN = "https://github.com/Sakshi113/MMAU (mmau-test-mini.json and the test-mini audios)"
FILE = "mmau-test-mini.json"
TABLES = ("task", "difficulty", "sub-category")


class Mmau(Task):
    """What the model writes, by the official rule."""

    name = "mmau"
    variant = "test-mini, generate: the official matching of words"
    folder = "mmau"
    prompt = "choices"
    max_new_tokens = 32

    def samples(self, data: Path) -> Sequence[Sample]:
        return [
            Sample(
                id=name,
                question=self.question(record),
                sounds=(data / record["audio_id"].text(),),
                choices=record["choices"].texts(),
                cluster=record["audio_id"].text(),
                expected=record["answer"].text(),
            )
            for name, record in questions(data).items()
        ]

    def question(self, record: files.Record) -> str:
        choices = " / ".join(record["choices"].texts())
        return prompts.fill(self.prompt, question=record["question"].text(), choices=choices)

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        known = questions(data)
        each = {name: 100.0 * self.right(known[name], prediction) for name, prediction in predictions.items()}
        tables: dict[str, dict[str, list[float]]] = {table: defaultdict(list) for table in TABLES}
        for name, value in each.items():
            for table in TABLES:
                tables[table][known[name][table].text()].append(value)
        digest = hashlib.sha256((data / FILE).read_bytes()).hexdigest()
        return Scores(
            main="accuracy",
            metrics={"accuracy": sum(each.values()) / len(each)},
            per_sample=each,
            breakdown={
                table: {row: sum(values) / len(values) for row, values in sorted(rows.items())}
                for table, rows in tables.items()
            },
            notes=(f"sha256 of {FILE}: {digest}. Name the version (MMAU-v05.15.25 or the one before) with the score.",),
        )

    def right(self, record: files.Record, prediction: Any) -> bool:
        return matches(record["answer"].text(), str(prediction), record["choices"].texts())

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str] | None:
        """The file that the official evaluation.py reads. Its guide asks for `model_prediction`, versions of it read
        `model_output` and pass over what lacks that: both are there."""
        rows = [
            {**record.value, "model_prediction": predictions[name], "model_output": predictions[name]}
            for name, record in questions(data).items()
        ]
        return FILE, json.dumps(rows, indent=1, ensure_ascii=False)


class MmauLikelihood(Mmau):
    """The choice that is likeliest as the answer."""

    name = "mmau_likelihood"
    variant = "test-mini, likelihood: the choice that is likeliest as the whole answer"
    mode = Mode.LIKELIHOOD

    def predict(self, pipeline: "Pipeline", samples: Sequence[Sample]) -> Iterator[list[float]]:
        return choose(pipeline, samples)

    def right(self, record: files.Record, prediction: Any) -> bool:
        choices = record["choices"].texts()
        if len(prediction) != len(choices):
            raise record.error(f"the prediction has {len(prediction)} numbers, there are {len(choices)} choices")
        return choices[best(prediction)] == record["answer"].text()

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str] | None:
        return None


def questions(data: Path) -> dict[str, files.Record]:
    """The records by id, their choices checked."""
    found = files.unique(files.read_json(data / FILE, ORIGIN).list(), lambda record: record["id"].text())
    for record in found.values():
        if record["answer"].text() not in record["choices"].texts():
            raise record.error(f"the answer {record['answer'].text()!r} is not among the choices")
    return found


def matches(answer: str, prediction: str, choices: Sequence[str]) -> bool:
    """The official rule; words are what the regular expression `\\w+` finds in the lower-cased text."""
    said, right = words(prediction), words(answer)
    wrong = set().union(*(words(choice) for choice in choices)) - right
    return bool(said) and right <= said and not said & wrong


def words(text: str) -> set[str]:
    return set(re.findall(r"\b\w+\b", text.lower()))
