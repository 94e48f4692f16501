"""A waveform as it is, in windows of equal length: what encoders with their own first convolutions read.

Letters: n samples, F samples in a window.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Waveform:
    """Windows of `frames` samples, of which there are `rate` in a second."""

    rate: int = 16_000
    frames: int = 640_000

    def __post_init__(self) -> None:
        for name, least in (("rate", 1000), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")

    def count(self, samples: int) -> int:
        """A frame is a sample here."""
        return samples

    def windows(self, blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, int]]:
        """Blocks (n,) of a waveform -> windows (F,), and how many samples of each are sound; zeros follow these."""
        held: list[Tensor] = []
        length = 0
        for block in blocks:
            held.append(block)
            length += len(block)
            if length > self.frames:
                *whole, rest = torch.cat(held).split(self.frames)
                for window in whole:
                    yield window.clone(), self.frames
                held, length = [rest], len(rest)
        rest = torch.cat([*held, torch.zeros(self.frames - length)])
        yield rest, length
