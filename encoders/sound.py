"""What every sound encoder declares, so that a processor can prepare windows and a projector can be sized.

Letters: W windows, F frames in a window, M mel bins.
"""

import torch
from torch import Tensor, nn

from encoders.spectrogram import Spectrogram


class SoundEncoder(nn.Module):
    """A frozen encoder: windows (W, F, M) as `spectrogram` prepares them, frames (W,) that are sound in each
    -> features (W, tokens, width).

    The tokens are the cells of the grid (time, frequency), moment by moment. Of those under no sound at all nothing is
    promised: `heard` tells which they are.
    """

    width: int
    grid: tuple[int, int]
    spectrogram: Spectrogram

    @property
    def tokens(self) -> int:
        return self.grid[0] * self.grid[1]

    def moments(self, frames: Tensor) -> Tensor:
        """frames (W,) -> how many of the grid's moments (W,) have sound under them."""
        step = self.spectrogram.frames / self.grid[0]
        return torch.ceil(frames / step).long().clamp(max=self.grid[0])

    def heard(self, frames: Tensor) -> Tensor:
        """frames (W,) -> (W, tokens) bool, False where there is no sound."""
        moments = torch.arange(self.grid[0], device=frames.device) < self.moments(frames)[:, None]
        return moments.repeat_interleave(self.grid[1], dim=1)
