"""Whisper's log mel spectrogram: 30 s at a time, none of which depends on another.

Letters: n samples, F frames in a window, M mel bins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from encoders.waveform import Waveform

RATE = 16_000
HOP = 160  # samples from one frame to the next
REACH = 400  # samples under one frame
FLOOR = 1e-10  # of the energy in a bin
RANGE = 8.0  # decades: what is fainter than the loudest bin of the window by more than these is as faint as that


@dataclass(frozen=True)
class LogMel:
    """Windows of `frames` frames of `bins` logarithms, every 10 ms one of 25 ms, as
    `transformers.WhisperFeatureExtractor` computes them: Slaney's mel filters up to 8 kHz, the scale of each window set
    by its own maximum. A window's edges are mirrored."""

    bins: int = 80
    frames: int = 3000

    def __post_init__(self) -> None:
        for name, least in (("bins", 1), ("frames", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")

    @property
    def rate(self) -> int:
        return RATE

    def count(self, samples: int) -> int:
        """Frames that so many samples give: as many as begin in the sound."""
        return -(-samples // HOP)

    def windows(self, blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, int]]:
        """Blocks (n,) of a waveform -> windows (F, M), and how many frames of each are sound; silence follows these."""
        for samples, length in Waveform(RATE, self.frames * HOP).windows(blocks):
            yield self._features(samples), self.count(length)

    def _features(self, samples: Tensor) -> Tensor:
        spectrum = torch.stft(samples, REACH, HOP, window=torch.hann_window(REACH), return_complex=True)
        power = spectrum[:, :-1].abs().square()
        decades = (self._filters.T @ power).clamp(min=FLOOR).log10()
        return ((decades.maximum(decades.max() - RANGE) + 4) / 4).T.contiguous()

    @cached_property
    def _filters(self) -> Tensor:
        from transformers.audio_utils import mel_filter_bank

        filters = mel_filter_bank(REACH // 2 + 1, self.bins, 0.0, RATE / 2, RATE, norm="slaney", mel_scale="slaney")
        return torch.from_numpy(filters).float()
