"""TextVQA: questions whose answers are written in the picture.

With the dataset's OCR tokens in the prompt a model scores far higher than without, so that these are two tasks:
`textvqa` and `textvqa_ocr`. Papers report val; LLaVA 1.5's figures are with tokens.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import textvqa
from eval.metrics.mean import mean
from eval.task import Sample, Scores, Task

ORIGIN = "the TextVQA download page, https://textvqa.org/dataset"


class Val(Task):
    """val: 5,000 questions, the picture alone."""

    name = "textvqa"
    variant = "val, without OCR tokens"
    folder = "textvqa"
    prompt = "short"
    max_new_tokens = 32
    split = "val"
    pictures = "train_images"  # val has no folder of its own
    answered = True

    def samples(self, data: Path) -> Sequence[Sample]:
        tokens = self._tokens(data)
        found = []
        for id, record in self._records(data).items():
            picture = record["image_id"].name()
            words = {"question": record["question"].text().capitalize()}
            if tokens is not None:
                if picture not in tokens:
                    raise record.error(f"there are no OCR tokens of the picture {picture!r}")
                words["tokens"] = ", ".join(tokens[picture])
            answers = record["answers"].texts(textvqa.ANNOTATORS) if self.answered else ()
            found.append(
                Sample(
                    id,
                    prompts.fill(self.prompt, **words),
                    images=(data / self.pictures / f"{picture}.jpg",),
                    cluster=picture,
                    expected=max(answers, key=answers.count, default=""),
                )
            )
        return sorted(found, key=lambda sample: sample.cluster)  # questions on one picture one after another

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        records = self._records(data)
        each = {
            id: 100 * textvqa.accuracy(text, records[id]["answers"].texts(textvqa.ANNOTATORS))
            for id, text in predictions.items()
        }
        return Scores(main="accuracy", metrics={"accuracy": mean(each.values())}, per_sample=each)

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str]:
        """The JSON array that EvalAI's TextVQA challenge takes."""
        rows = [{"question_id": int(id), "answer": text} for id, text in predictions.items()]
        return f"{self.name}_evalai.json", json.dumps(rows)

    def _records(self, data: Path) -> dict[str, files.Record]:
        file = files.read_json(data / f"TextVQA_0.5.1_{self.split}.json", ORIGIN)
        return files.unique(file["data"].list(), lambda record: str(record["question_id"].integer()))

    def _tokens(self, data: Path) -> dict[str, tuple[str, ...]] | None:
        return None


class ValOcr(Val):
    """val with the Rosetta OCR tokens that come with the data set in the prompt."""

    name = "textvqa_ocr"
    variant = "val, with Rosetta OCR tokens in the prompt"
    prompt = "short_ocr"

    def _tokens(self, data: Path) -> dict[str, tuple[str, ...]]:
        file = files.read_json(data / f"TextVQA_Rosetta_OCR_v0.2_{self.split}.json", ORIGIN)
        records = files.unique(file["data"].list(), lambda record: record["image_id"].name())
        return {picture: record["ocr_tokens"].texts() for picture, record in records.items()}


class Test(Val):
    """test: answers are not public, EvalAI scores the file."""

    name = "textvqa_test"
    variant = "test, without OCR tokens"
    split = "test"
    pictures = "test_images"
    answered = False

    @property
    def scored_here(self) -> bool:
        return False


class TestOcr(ValOcr, Test):
    """test with OCR tokens."""

    name = "textvqa_test_ocr"
    variant = "test, with Rosetta OCR tokens in the prompt"
