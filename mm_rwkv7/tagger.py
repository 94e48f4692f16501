"""Tagging: what is heard in a sound, as probabilities of classes.

Letters: W windows, F frames of a window, E width of the encoder, C classes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from encoders.build import SoundEncoderConfig, build_sound
from encoders.sound import Frontend
from mm_rwkv7.ops import wkv7
from mm_rwkv7.sounds import Sound

WINDOWS = 8  # of a sound that are encoded at once

Tags = list[tuple[str, float]]


@dataclass(frozen=True)
class TaggerConfig:
    """A sound encoder and the classes that it tells apart: a model without a language model."""

    encoder: SoundEncoderConfig
    labels: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.labels or len(set(self.labels)) != len(self.labels):
            raise ValueError("a tagger needs labels, each of them once")


class Tagger(nn.Module):
    """Windows of a sound (W, F, ...) and how many frames of each are sound (W,) -> logits (W, C)."""

    def __init__(self, config: TaggerConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_sound(config.encoder, wkv7)
        self.head = build_head(self.encoder.width, len(config.labels))

    def forward(self, windows: Tensor, frames: Tensor) -> Tensor:
        logits: Tensor = self.head(self.encoder.summary(windows, frames))
        return logits.float()


def build_head(width: int, classes: int) -> nn.Sequential:
    """From an encoder's summary (W, E) to logits (W, C)."""
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, classes))


def batches(frontend: Frontend, sound: Sound, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows (W, F, ...) and how many frames of each are sound (W,), a few at a time: memory does not grow with the
    length."""
    windows = frontend.windows(sound.blocks())
    while several := list(islice(windows, WINDOWS)):
        pictures, frames = zip(*several, strict=True)
        yield torch.stack(pictures).to(device), torch.tensor(frames, device=device)


def likeliest(scored: Iterator[tuple[Tensor, Tensor]], labels: Sequence[str], top: int) -> Tags:
    """The likeliest classes of a sound, of whose windows come logits (W, C) and how many frames are sound (W,): means
    of the probabilities, which need not add up to one, as several classes may be heard."""
    total, frames = torch.zeros(len(labels)), 0
    for logits, sounding in scored:
        total += (logits.sigmoid() * sounding[:, None]).sum(0).cpu()
        frames += int(sounding.sum())
    best = (total / frames).topk(min(top, len(labels)))
    return [(labels[i], score) for score, i in zip(best.values.tolist(), best.indices.tolist(), strict=True)]
