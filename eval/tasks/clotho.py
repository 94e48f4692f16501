"""Clotho: one sentence about each of the 1,045 sounds of its evaluation split, against five that people wrote."""

from collections.abc import Sequence
from pathlib import Path

from eval import files, prompts
from eval.sound_captions import SoundCaptions
from eval.task import Sample

ORIGIN = "https://zenodo.org/records/4783391 (Clotho 2.1)"
TABLE, SOUNDS = "clotho_captions_evaluation.csv", "evaluation"


class Clotho(SoundCaptions):
    name = "clotho"
    variant = "Clotho 2.1, evaluation split, five references"
    folder = "clotho"

    def samples(self, data: Path) -> Sequence[Sample]:
        question = prompts.fill(self.prompt)
        return [
            Sample(id=name, question=question, sounds=(data / SOUNDS / name,), expected=written[0])
            for name, written in self.references(data).items()
        ]

    def references(self, data: Path) -> dict[str, list[str]]:
        """The five captions of each sound by its file's name."""
        rows = files.unique(files.read_csv(data / TABLE, ORIGIN), lambda row: row["file_name"].text())
        return {name: [row[f"caption_{number}"].text() for number in range(1, 6)] for name, row in rows.items()}
