"""Clotho: one sentence about each of the 1,045 sounds of its evaluation split, against five that people wrote."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval import files, prompts
from eval.sound_captions import score
from eval.task import Sample, Scores, Task

ORIGIN = "https://zenodo.org/records/4783391 (Clotho 2.1)"
TABLE, SOUNDS = "clotho_captions_evaluation.csv", "evaluation"


class Clotho(Task):
    name = "clotho"
    variant = "Clotho 2.1, evaluation split, five references"
    folder = "clotho"
    prompt = "sound_caption"
    max_new_tokens = 64

    def samples(self, data: Path) -> Sequence[Sample]:
        question = prompts.fill(self.prompt)
        return [
            Sample(id=name, question=question, sounds=(data / SOUNDS / name,), expected=written[0])
            for name, written in references(data).items()
        ]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        return score(predictions, references(data))


def references(data: Path) -> dict[str, list[str]]:
    """The five captions of each sound by its file's name."""
    rows = files.unique(files.read_csv(data / TABLE, ORIGIN), lambda row: row["file_name"].text())
    return {name: [row[f"caption_{number}"].text() for number in range(1, 6)] for name, row in rows.items()}
