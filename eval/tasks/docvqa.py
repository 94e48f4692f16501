"""DocVQA (single page): questions about scanned documents, scored by ANLS. Papers report test, which the Robust Reading
Competition scores; val is what can be scored here."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.metrics import anls
from eval.metrics.mean import mean
from eval.task import Sample, Scores, Task

ORIGIN = "task 1 of DocVQA at the Robust Reading Competition, https://rrc.cvc.uab.es/?ch=17"


class Val(Task):
    """val: 5,349 questions."""

    name = "docvqa"
    variant = "val, ANLS"
    folder = "docvqa"
    prompt = "short"
    max_new_tokens = 32
    split = "val"
    questions_file = "spdocvqa_qas/val_v1.0_withQT.json"
    answered = True

    def samples(self, data: Path) -> Sequence[Sample]:
        found = []
        for id, record in self._records(data).items():
            picture = Path(record["image"].text()).name  # the records still name the folder of an earlier download
            found.append(
                Sample(
                    id,
                    prompts.fill(self.prompt, question=record["question"].text()),
                    images=(data / "spdocvqa_images" / picture,),
                    cluster=picture,
                    expected=_answers(record)[0] if self.answered else "",
                )
            )
        return sorted(found, key=lambda sample: sample.cluster)  # questions on one page one after another

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        records = self._records(data)
        each = {id: 100 * anls.score(text, _answers(records[id])) for id, text in predictions.items()}
        return Scores(main="anls", metrics={"anls": mean(each.values())}, per_sample=each)

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str]:
        """The JSON array that the competition's server takes."""
        rows = [{"questionId": int(id), "answer": text} for id, text in predictions.items()]
        return f"docvqa_{self.split}_rrc.json", json.dumps(rows)

    def _records(self, data: Path) -> dict[str, files.Record]:
        file = files.read_json(data / self.questions_file, ORIGIN)
        return files.unique(file["data"].list(), lambda record: str(record["questionId"].integer()))


class Test(Val):
    """test: answers are not public."""

    name = "docvqa_test"
    variant = "test, scored by the Robust Reading Competition"
    split = "test"
    questions_file = "spdocvqa_qas/test_v1.0.json"
    answered = False

    @property
    def scored_here(self) -> bool:
        return False


def _answers(record: files.Record) -> tuple[str, ...]:
    answers = record["answers"].texts()
    if not answers:
        raise record["answers"].error("no answers, expected at least one")
    return answers
