"""What every tower declares, so that a processor can prepare pictures and a projector can be sized.

Letters: B batch, S side of the prepared picture in pixels.
"""

from dataclasses import dataclass
from typing import Protocol

from PIL import Image
from torch import Tensor

INTERPOLATIONS = ("bicubic", "bilinear")


@dataclass(frozen=True)
class Preprocess:
    """How an RGB picture becomes the tower's square input, and how its pixels are normalised.

    Pixels travel as uint8; the tower normalises them itself: (pixels / 255 - mean) / std, per channel.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}, expected one of {INTERPOLATIONS}")

    def resize(self, image: Image.Image) -> Image.Image:
        """Squash an RGB picture to size x size; the aspect ratio is not kept."""
        return image.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])


class Encoder(Protocol):
    """A frozen tower: pixels (B, 3, S, S) uint8 -> features (B, rows * columns, width), row by row."""

    width: int
    grid: tuple[int, int]
    preprocess: Preprocess

    def __call__(self, pixels: Tensor) -> Tensor: ...
