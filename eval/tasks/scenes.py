"""Generated pictures of shapes, from odd seeds: questions with exact answers, by kind. Needs no files."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.task import Sample, Scores, Task
from mm_rwkv7.synthetic import scenes

if TYPE_CHECKING:
    from PIL.Image import Image

PICTURES = 300
SIZE = 192


@dataclass(frozen=True)
class Drawn:
    """The picture of a seed, drawn when it is wanted."""

    seed: int

    def __call__(self) -> "Image":
        return scenes.sample(self.seed, SIZE).image


class Scenes(Task):
    name = "scenes"
    variant = f"scenes of the {PICTURES} odd seeds from 1, exact answers"
    max_new_tokens = 32

    def samples(self, data: Path) -> Sequence[Sample]:
        return [sample for sample, _ in _questions()]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        return exact_by_kind(_questions(), predictions)


@cache
def _questions() -> tuple[tuple[Sample, str], ...]:
    """Every sample with the kind of its question."""
    return tuple(
        (Sample(f"{seed}-{number}", question, (Drawn(seed),), cluster=str(seed), expected=answer), kind)
        for seed in range(1, 2 * PICTURES, 2)
        for number, (question, answer, kind) in enumerate(scenes.questions(seed))
    )


def exact_by_kind(questions: Sequence[tuple[Sample, str]], predictions: Mapping[str, str]) -> Scores:
    """The share of answers equal to the expected one but for case, blanks around it and a final period: of all and of
    each kind."""
    right: dict[str, float] = {}
    kinds: dict[str, list[float]] = defaultdict(list)
    for sample, kind in questions:
        if sample.id in predictions:
            right[sample.id] = 100.0 * (_plain(predictions[sample.id]) == _plain(sample.expected))
            kinds[kind].append(right[sample.id])
    table = {kind: sum(kinds[kind]) / len(kinds[kind]) for kind in sorted(kinds)}
    return Scores("exact", {"exact": sum(right.values()) / len(right)}, right, {"kind of question": table})


def _plain(answer: str) -> str:
    return answer.strip().lower().removesuffix(".")
