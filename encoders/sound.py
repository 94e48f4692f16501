"""What every sound encoder declares, so that a processor can prepare windows and a projector can be sized.

Letters: W windows, F frames in a window, M mel bins.
"""

from collections.abc import Iterator
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

Count = TypeVar("Count", int, Tensor)


class Frontend(Protocol):
    """How a waveform becomes an encoder's windows: a filter bank (`spectrogram.py`, `logmel.py`) or nothing
    (`waveform.py`). A frame is what a window has `frames` of: a row of the filter bank, or a sample."""

    @property
    def rate(self) -> int:
        """Samples in a second of the waveform."""
        ...

    @property
    def frames(self) -> int:
        """Frames in a window."""
        ...

    def count(self, samples: int) -> int:
        """Frames that so many samples give, in all windows."""
        ...

    def windows(self, blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, int]]:
        """Blocks (n,) of a waveform -> windows (F, ...), and how many frames of each are sound: the same wherever the
        blocks are cut, in memory that does not grow with the length."""
        ...


class SoundEncoder(nn.Module):
    """A frozen encoder: windows (W, F, ...) as `frontend` prepares them, frames (W,) that are sound in each
    -> features (W, tokens, width).

    The tokens are the cells of the grid (time, frequency), moment by moment. Of those under no sound at all nothing is
    promised: `heard` tells which they are.
    """

    width: int
    grid: tuple[int, int]
    frontend: Frontend

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def moments(self, frames: Count) -> Count:
        """frames, of one window or (W,) of several -> how many of the grid's moments have sound under them."""
        return -(-frames * self.grid[0] // self.frontend.frames)

    def heard(self, frames: Tensor) -> Tensor:
        """frames (W,) -> (W, tokens) bool, False where there is no sound."""
        moments = torch.arange(self.grid[0], device=frames.device) < self.moments(frames)[:, None]
        return moments.repeat_interleave(self.grid[1], dim=1)

    def mean(self, features: Tensor, frames: Tensor) -> Tensor:
        """features (W, T, width) of the first tokens, or of all -> the mean (W, width) of those that are heard."""
        heard = self.heard(frames)[:, : features.shape[1], None]
        return ((features * heard).sum(1) / heard.sum(1).clamp(min=1)).to(features.dtype)

    def summary(self, windows: Tensor, frames: Tensor) -> Tensor:
        """-> what a published classifier reads of each window (W, width)."""
        return self.mean(self(windows, frames), frames)
