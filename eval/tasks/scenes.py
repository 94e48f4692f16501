"""Generated pictures of shapes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval.generated import MADE, Generated
from mm_rwkv7.synthetic import scenes

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = 192


@dataclass(frozen=True)
class Drawn:
    """The picture of a seed."""

    seed: int

    def __call__(self) -> "Image":
        return scenes.sample(self.seed, SIZE).image


class Scenes(Generated):
    name = "scenes"
    variant = f"scenes of the {MADE} odd seeds from 1, exact answers"

    def ask(self, seed: int) -> Sequence[tuple[str, str, str]]:
        return scenes.questions(seed)

    def show(self, seed: int) -> dict[str, Any]:
        return {"images": (Drawn(seed),)}
