"""Generated sounds, from odd seeds: questions with exact answers, by kind. Needs no files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from eval.task import Sample, Scores, Task
from eval.tasks.scenes import exact_by_kind
from mm_rwkv7.synthetic import soundscapes

SOUNDS = 300


@dataclass(frozen=True)
class Played:
    """The sound of a seed, made when it is wanted."""

    seed: int

    def __call__(self) -> tuple[Any, int]:
        scape = soundscapes.sample(self.seed)
        return scape.waveform, scape.rate


class Soundscapes(Task):
    name = "soundscapes"
    variant = f"soundscapes of the {SOUNDS} odd seeds from 1, exact answers"
    max_new_tokens = 32

    def samples(self, data: Path) -> Sequence[Sample]:
        return [sample for sample, _ in _questions()]

    def score(self, data: Path, predictions: Mapping[str, Any]) -> Scores:
        return exact_by_kind(_questions(), predictions)


@cache
def _questions() -> tuple[tuple[Sample, str], ...]:
    """Every sample with the kind of its question."""
    return tuple(
        (Sample(f"{seed}-{number}", question, sounds=(Played(seed),), cluster=str(seed), expected=answer), kind)
        for seed in range(1, 2 * SOUNDS, 2)
        for number, (question, answer, kind) in enumerate(soundscapes.questions(seed))
    )
