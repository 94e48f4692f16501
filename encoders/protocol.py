"""What every tower declares, so that a processor can prepare pictures and a projector can be sized.

Letters: I pictures, S side of a prepared picture in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

INTERPOLATIONS = ("bicubic", "bilinear")

# (I, 3, S, S) uint8; for a tower that looks at each picture in several ways, one such tensor for each of them.
Pixels = Tensor | tuple[Tensor, ...]


@dataclass(frozen=True)
class Preprocess:
    """How an RGB picture becomes a tower's square input, and how its pixels are normalised.

    Pixels travel as uint8; the tower normalises them itself: (pixels / 255 - mean) / std, per channel.
    """

    size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 pixel")
        if len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"mean is {self.mean} and std {self.std}, expected three numbers each")
        if not all(value > 0 for value in self.std):
            raise ValueError(f"std is {self.std}, expected numbers above 0")
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation is {self.interpolation!r}, expected one of {INTERPOLATIONS}")

    def resize(self, image: Image.Image) -> Image.Image:
        """Squash an RGB picture to size x size; the aspect ratio is not kept."""
        return image.resize((self.size, self.size), Image.Resampling[self.interpolation.upper()])

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB pictures -> (I, 3, S, S) uint8."""
        resized = np.stack([np.asarray(self.resize(image)) for image in images])
        return torch.from_numpy(resized).permute(0, 3, 1, 2).contiguous()


@dataclass(frozen=True)
class Views:
    """Several ways to prepare each picture, every one from the picture itself."""

    views: tuple[Preprocess, ...]

    @property
    def size(self) -> int:
        """The side of the largest view."""
        return max(view.size for view in self.views)

    def pixels(self, images: Sequence[Image.Image]) -> tuple[Tensor, ...]:
        return tuple(view.pixels(images) for view in self.views)


class Encoder(nn.Module):
    """A frozen tower: pixels (I, 3, S, S) uint8 -> features (I, tokens, width).

    The tokens are the cells of the grid, row by row, after a class token where the tower gives one.
    """

    width: int
    grid: tuple[int, int]
    tokens: int
    preprocess: Preprocess | Views


def join(several: Sequence[Pixels]) -> Pixels:
    """The pixels of several pictures, one after another, as one."""
    if isinstance(several[0], Tensor):
        return torch.cat([pixels for pixels in several if isinstance(pixels, Tensor)])
    return tuple(torch.cat(view) for view in zip(*several, strict=True))


def move(pixels: Pixels, device: torch.device) -> Pixels:
    """The same pixels on `device`."""
    return pixels.to(device) if isinstance(pixels, Tensor) else tuple(view.to(device) for view in pixels)
