"""Hearing: a sound encoder, the projector that makes tokens of its features, and a head that names what is heard.

Letters: W windows, F frames of a window, M mel bins, E width of the encoder, D width of the language model, C classes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encoders.build import SoundEncoderConfig, build_sound
from encoders.pooling import pool_grid
from encoders.sound import Frontend
from mm_rwkv7.ops import wkv7
from mm_rwkv7.projector import AnyProjectorConfig, ProjectorConfig, build_projector
from mm_rwkv7.sounds import Sound
from mm_rwkv7.tagger import Tags, build_head


@dataclass(frozen=True)
class SoundConfig:
    """How a model hears. `pool` is the grid (moments, pitches) to which the encoder's is averaged, window by window,
    before the projector. `labels` are the classes of the tagging head; without them there is none."""

    encoder: SoundEncoderConfig
    projector: AnyProjectorConfig
    pool: tuple[int, int] | None = None
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.pool is not None and (len(self.pool) != 2 or min(self.pool) < 1):
            raise ValueError(f"a sound's pool is {self.pool}, expected moments and pitches")
        if isinstance(self.projector, ProjectorConfig) and self.projector.summary:
            raise ValueError("a sound's projector cannot add a summary: its windows are cut where the sound ends")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("two labels of the tagging head are the same")


@dataclass(frozen=True)
class SoundTokens:
    """What a prompt has to know of the encoder: how a waveform becomes windows, how many tokens a whole one gives,
    moment by moment, and how many of the moments are `heard` of a window, of which so many frames are sound."""

    frontend: Frontend
    moments: int
    pitches: int
    heard: Callable[[int], int]

    def of_window(self, frames: int) -> int:
        """Tokens of a window of which so many frames, one at least, are sound."""
        return self.heard(frames) * self.pitches

    def count(self, samples: int) -> int:
        """Tokens of a sound of so many samples."""
        return self.of_frames(self.frontend.count(samples))

    def of_frames(self, frames: int) -> int:
        """Tokens of a sound of so many frames, in one window after another."""
        whole, rest = divmod(frames, self.frontend.frames)
        return whole * self.of_window(self.frontend.frames) + (self.of_window(rest) if rest else 0)


@dataclass(frozen=True)
class Heard:
    """A sound that a model has encoded: the `tokens` (n, D) that stand for it in a prompt, and its `tags`, none from a
    model without a tagging head. It is as large as the sound is long."""

    sound: Sound
    tokens: Tensor
    tags: Tags
    model: object  # the fingerprint of the one that heard it

    @property
    def samples(self) -> int:
        return self.sound.samples


class Hearing(nn.Module):
    """Windows of a sound (W, F, M) and how many frames of each are sound (W,) -> tokens, or classes."""

    def __init__(self, config: SoundConfig, output_width: int) -> None:
        super().__init__()
        self.encoder = build_sound(config.encoder, wkv7)
        self.pool = config.pool
        moments, pitches = grid = self.encoder.grid
        if config.pool is not None:
            moments, pitches = config.pool
            if moments > grid[0] or pitches > grid[1]:
                raise ValueError(f"a grid of {grid[0]} x {grid[1]} cannot be pooled to {moments} x {pitches}")
        width = self.encoder.width
        if width != config.projector.input_width:
            raise ValueError(
                f"the sound's projector reads width {config.projector.input_width}, "
                f"the {config.encoder.kind} encoder gives {width}"
            )
        self.projector = build_projector(config.projector, output_width)
        cells = moments * pitches
        if self.projector.tokens(cells) != cells:  # fewer come out, and a moment is no longer a row of the grid
            moments, pitches = self.projector.tokens(cells), 1
        self.tokens = SoundTokens(self.encoder.frontend, moments, pitches, self._heard)
        classes = len(config.labels)
        self.head = build_head(width, classes) if classes else None

    def _heard(self, frames: int) -> int:
        """How many of the tokens' moments have sound under them in a window with so many frames of it."""
        heard = self.encoder.moments(frames)
        whole, pitches = self.encoder.grid
        if self.pool is not None:
            heard = -(-heard * self.pool[0] // whole)
            whole, pitches = self.pool
        return self.projector.under(heard * pitches, whole * pitches) // self.tokens.pitches

    def forward(self, windows: Tensor, frames: Tensor) -> Tensor:
        """-> tokens (W, `tokens.moments * tokens.pitches`, D), of which those of `tokens.of_window` lie under sound."""
        x: Tensor = self.projector(self.features(windows, frames))
        return x

    def features(self, windows: Tensor, frames: Tensor) -> Tensor:
        """-> what the projector reads (W, cells, E): with a frozen encoder the same every time."""
        return self._pooled(self.encoder(windows, frames), frames)

    def project(self, features: Tensor, frames: Tensor) -> Tensor:
        """What `features` gave of consecutive windows -> their tokens (..., D) that lie under sound."""
        counts = [self.tokens.of_window(count) for count in frames.tolist()]
        return torch.cat([row[:count] for row, count in zip(self.projector(features), counts, strict=True)])

    def read(self, windows: Tensor, frames: Tensor) -> Tensor:
        """-> the tokens (..., D) of consecutive windows that lie under sound."""
        return self.project(self.features(windows, frames), frames)

    def tag(self, windows: Tensor, frames: Tensor) -> Tensor:
        """-> logits (W, C) of the classes, from the mean of the encoder's features under sound."""
        return self._classes(self.encoder(windows, frames), frames)

    def read_and_tag(self, windows: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        """-> what `read` gives and what `tag` gives, from one pass of the encoder."""
        features = self.encoder(windows, frames)
        return self.project(self._pooled(features, frames), frames), self._classes(features, frames)

    def _pooled(self, features: Tensor, frames: Tensor) -> Tensor:
        if self.pool is None:
            return features
        # Where no sound is, nothing is averaged.
        heard = self.encoder.heard(frames)[..., None].to(features.dtype)
        shares = pool_grid(heard, self.encoder.grid, self.pool)
        return pool_grid(features * heard, self.encoder.grid, self.pool) / shares.clamp(min=1e-6)

    def _classes(self, features: Tensor, frames: Tensor) -> Tensor:
        if self.head is None:
            raise ValueError("this model has no tagging head")
        logits: Tensor = self.head(self.encoder.mean(features, frames))
        return logits.float()
