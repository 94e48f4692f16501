"""COCO captions: one sentence a picture, against five that people wrote.

Papers report the 5,000 pictures of Karpathy's test split. CodaLab's server takes two files, of val2014 and test2014.
"""

import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval import captioning, files, prompts
from eval.task import Sample, Scores, Task

OFFICIAL = "the COCO download page, https://cocodataset.org/#download"
KARPATHY = (
    "caption_datasets.zip of Deep Visual-Semantic Alignments, https://cs.stanford.edu/people/karpathy/deepimagesent/"
)


@dataclass(frozen=True)
class Picture:
    file: Path
    references: tuple[str, ...]


class _Captions(Task):
    folder = "coco"
    prompt = "caption"
    max_new_tokens = 64

    @abstractmethod
    def pictures(self, data: Path) -> dict[str, Picture]:
        """The pictures by COCO id, in order."""

    def samples(self, data: Path) -> Sequence[Sample]:
        question = prompts.fill(self.prompt)
        return [
            Sample(id, question, images=(picture.file,), expected=next(iter(picture.references), ""))
            for id, picture in self.pictures(data).items()
        ]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        return captioning.score(predictions, {id: picture.references for id, picture in self.pictures(data).items()})


class Karpathy(_Captions):
    """Karpathy's test split: 5,000 pictures of val2014."""

    name = "coco"
    variant = "Karpathy test, 5,000 pictures of val2014"

    def pictures(self, data: Path) -> dict[str, Picture]:
        records = files.read_json(data / "dataset_coco.json", KARPATHY)["images"].list()
        test = [record for record in records if record["split"].text() == "test"]
        return {
            id: Picture(
                data / record["filepath"].text() / record["filename"].text(),
                tuple(sentence["raw"].text() for sentence in record["sentences"].list()),
            )
            for id, record in files.unique(test, lambda record: str(record["cocoid"].integer())).items()
        }


class Val2014(_Captions):
    """All 40,504 pictures of val2014."""

    name = "coco_val2014"
    variant = "val2014, all pictures"
    subset = "val2014"
    listing = "annotations/captions_val2014.json"

    def pictures(self, data: Path) -> dict[str, Picture]:
        file = files.read_json(data / self.listing, OFFICIAL)
        images = files.unique(file["images"].list(), lambda record: str(record["id"].integer()))
        written: dict[str, list[str]] = {id: [] for id in images}
        for record in self._annotations(file):
            id = str(record["image_id"].integer())
            if id not in written:
                raise record.error(f"a caption of {id}, which is not among the images")
            written[id].append(record["caption"].text())
        return {
            id: Picture(data / self.subset / record["file_name"].text(), tuple(written[id]))
            for id, record in images.items()
        }

    def submission(self, data: Path, predictions: Mapping[str, Any]) -> tuple[str, str]:
        """The results file that CodaLab takes (zipped with the other subset's)."""
        rows = [{"image_id": int(id), "caption": text} for id, text in predictions.items()]
        return f"captions_{self.subset}_mmrwkv7_results.json", json.dumps(rows)

    def _annotations(self, file: files.Record) -> list[files.Record]:
        return file["annotations"].list()


class Test2014(Val2014):
    """test2014: 40,775 pictures whose captions are not public."""

    name = "coco_test2014"
    variant = "test2014, scored by CodaLab"
    subset = "test2014"
    listing = "annotations/image_info_test2014.json"

    def _annotations(self, file: files.Record) -> list[files.Record]:
        return []

    @property
    def scored_here(self) -> bool:
        return False
