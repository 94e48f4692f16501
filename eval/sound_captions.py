"""Captions of sounds are judged as those of pictures are, with SPIDEr where SPICE could be computed."""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from eval import captioning
from eval.task import Scores, Task


class SoundCaptions(Task):
    """One sentence about each sound, against several that people wrote."""

    prompt = "sound_caption"
    max_new_tokens = 64

    @abstractmethod
    def references(self, data: Path) -> dict[str, list[str]]:
        """What people wrote about each sound, by its id."""

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        found = captioning.score(predictions, self.references(data))
        if "SPICE" not in found.metrics:
            return found
        both = (found.metrics["CIDEr-D"] + found.metrics["SPICE"]) / 2
        return replace(found, metrics={**found.metrics, "SPIDEr": both})
