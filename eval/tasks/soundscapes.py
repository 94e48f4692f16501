"""Generated sounds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eval.generated import MADE, Generated
from mm_rwkv7.synthetic import soundscapes


@dataclass(frozen=True)
class Played:
    """The sound of a seed."""

    seed: int

    def __call__(self) -> tuple[Any, int]:
        scape = soundscapes.sample(self.seed)
        return scape.waveform, scape.rate


class Soundscapes(Generated):
    name = "soundscapes"
    variant = f"soundscapes of the {MADE} odd seeds from 1, exact answers"

    def ask(self, seed: int) -> Sequence[tuple[str, str, str]]:
        return soundscapes.questions(seed)

    def show(self, seed: int) -> dict[str, Any]:
        return {"sounds": (Played(seed),)}
