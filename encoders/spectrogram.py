"""Sound as a picture of time and pitch: Kaldi's log mel filter bank, in windows of equal length.

Letters: n samples, F frames in a window, M mel bins, W windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Spectrogram:
    """How a waveform becomes windows of `frames` frames of `bins` logarithms, every 10 ms one of 25 ms.

    The bins reach from `lowest` to `highest` Hz, or to half the rate. The defaults are those of AST (and of
    `transformers.ASTFeatureExtractor`): 16 kHz, 128 bins, windows of 10.24 s. An
    encoder normalises by (x - mean) / scale; AST's scale is twice AudioSet's deviation of 4.5689974.
    """

    rate: int = 16_000
    bins: int = 128
    frames: int = 1024
    mean: float = -4.2677393
    scale: float = 9.1379948
    lowest: float = 20.0
    highest: float | None = None

    def __post_init__(self) -> None:
        for name, least in (("rate", 1000), ("bins", 4), ("frames", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.scale <= 0:
            raise ValueError(f"scale is {self.scale}, expected more than 0")
        if not 0 <= self.lowest < (self.highest or self.rate / 2) <= self.rate / 2:
            raise ValueError(
                f"the bins reach from {self.lowest} to {self.highest} Hz, expected to lie between 0 and {self.rate / 2}"
            )

    @property
    def hop(self) -> int:
        """Samples from one frame to the next."""
        return self.rate // 100

    @property
    def reach(self) -> int:
        """Samples under one frame."""
        return self.rate // 40

    def count(self, samples: int) -> int:
        """Frames that so many samples give: every one lies whole in the sound, but there is at least one."""
        return 1 + max(0, samples - self.reach) // self.hop

    def features(self, blocks: Iterator[Tensor]) -> Iterator[Tensor]:
        """Blocks (n,) of a waveform at `rate` -> blocks (frames, M), the same wherever the blocks are cut.

        A sound shorter than one frame is filled up with silence.
        """
        held = torch.zeros(0)
        begun = False
        for block in blocks:
            held = torch.cat([held, block])
            if len(held) >= self.reach:
                begun = True
                yield self._filter_bank(held)
                held = held[self.count(len(held)) * self.hop :]
        if not begun:
            yield self._filter_bank(torch.cat([held, torch.zeros(self.reach - len(held))]))

    def windows(self, blocks: Iterator[Tensor]) -> Iterator[tuple[Tensor, int]]:
        """Blocks (n,) of a waveform -> windows (F, M), and how many frames of each are sound; zeros follow these.

        Zeros before the normalisation, as AST was trained: an encoder that need not see them masks them.
        """
        held = torch.zeros(0, self.bins)
        for features in self.features(blocks):
            held = torch.cat([held, features])
            while len(held) > self.frames:
                yield held[: self.frames].clone(), self.frames
                held = held[self.frames :]
        yield torch.nn.functional.pad(held, (0, 0, 0, self.frames - len(held))), len(held)

    def normalise(self, windows: Tensor) -> Tensor:
        """(W, F, M) -> the same, as the encoder reads it."""
        return (windows - self.mean) / self.scale

    def _filter_bank(self, waveform: Tensor) -> Tensor:
        from torchaudio.compliance.kaldi import fbank

        features: Tensor = fbank(
            waveform[None],
            sample_frequency=self.rate,
            window_type="hanning",
            num_mel_bins=self.bins,
            low_freq=self.lowest,
            high_freq=self.highest or 0.0,  # which is Kaldi's for half the rate
        )
        return features
