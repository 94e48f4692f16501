"""MMRWKV7: a language model that reads pictures and sounds as tokens.

Letters: B batch, T time, I pictures (or tiles), M tokens per picture, D width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from encoders.build import build_tower
from encoders.pooling import pool_grid
from encoders.protocol import Encoder, Pixels
from mm_rwkv7.compressor import Compressor
from mm_rwkv7.config import MMConfig
from mm_rwkv7.hearing import Hearing
from mm_rwkv7.projector import Projector, build_projector
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import State


class MMRWKV7(nn.Module):
    """`logits, state = model(ids, state, pixels=...)`: placeholders in `ids` stand for the pictures' features, in
    order."""

    def __init__(self, config: MMConfig) -> None:
        super().__init__()
        self.config = config
        self.lm = RWKV7(config.lm)
        self.tower: Encoder | None = None
        self.projector: Projector | None = None
        self.compressor: Compressor | None = None
        if config.tower is not None and config.projector is not None:
            self.tower = build_tower(config.tower)
            if self.tower.width != config.projector.input_width:
                raise ValueError(
                    f"the projector reads width {config.projector.input_width}, "
                    f"the {config.tower.kind} tower gives {self.tower.width}"
                )
            if config.pool is not None:
                _check_pool(self.tower, config.pool)
            self.projector = build_projector(config.projector, config.lm.width)
            self.projector.tokens(self._cells)
            if config.compressor is not None:
                self.compressor = Compressor(config.compressor, config.lm)
        self.sound = None if config.sound is None else Hearing(config.sound, config.lm.width)

    @property
    def image_tokens(self) -> int:
        """Placeholders per picture, or per tile where pictures are cut; 0 for a model that does not see."""
        if self.config.compressor is not None:
            return self.config.compressor.tokens
        return 0 if self.projector is None else self.projector.tokens(self._cells)

    @property
    def _cells(self) -> int:
        """Tokens per picture that the projector reads."""
        assert self.tower is not None
        return self.tower.tokens if self.config.pool is None else math.prod(self.config.pool)

    def encode(self, pixels: Pixels, tiles: Sequence[int] = ()) -> Tensor:
        """Pictures as the tower's `preprocess` prepares them -> features in the embedding space (..., D), in order.
        `tiles` says how many of `pixels` each picture was cut into; without it each is a picture."""
        return self.project(self.see(pixels), tiles)

    def see(self, pixels: Pixels) -> Tensor:
        """Pictures as the tower's `preprocess` prepares them -> what the projector reads (I, tokens, width): with a
        frozen tower the same every time."""
        if self.tower is None:
            raise ValueError("this model has no tower: it reads text only")
        features: Tensor = self.tower(pixels)
        if self.config.pool is not None:
            features = pool_grid(features, self.tower.grid, self.config.pool)
        return features

    def project(self, features: Tensor, tiles: Sequence[int] = ()) -> Tensor:
        """What `see` gave of pictures -> features in the embedding space (..., D); see `encode`."""
        if self.projector is None:
            raise ValueError("this model has no tower: it reads text only")
        x: Tensor = self.projector(features)  # (I, M, D)
        if self.compressor is None:
            return x
        pictures = x.split(list(tiles) or [1] * len(x))
        compressed = [self.compressor(picture.flatten(0, 1)[None], len(picture)) for picture in pictures]
        return torch.cat(compressed, dim=1)[0]

    def hear(self, windows: Tensor, frames: Tensor) -> Tensor:
        """Windows of sounds as the sound encoder reads them, and how many frames of each are sound -> features in the
        embedding space (..., D), in order."""
        if self.sound is None:
            raise ValueError("this model has no sound encoder, it cannot hear")
        return self.sound.read(windows, frames)

    def embed(self, ids: Tensor, features: Tensor | None = None, sounds: Tensor | None = None) -> Tensor:
        """ids (B, T), features (..., D) of all pictures and of all `sounds` in reading order -> (B, T, D).

        Raises ValueError unless there are exactly as many placeholders of each as feature tokens.
        """
        config = self.config
        given = (("image", "pictures", config.image_id, features), ("audio", "sounds", config.audio_id, sounds))
        x = self.lm.embed(ids.masked_fill((ids == config.image_id) | (ids == config.audio_id), 0))
        for kind, several, placeholder, tokens in given:
            places = ids == placeholder
            wanted = int(places.sum())
            count = 0 if tokens is None else tokens.shape[:-1].numel()
            if wanted != count:
                raise ValueError(
                    f"the text has {wanted} {kind} placeholders, the {several} have {count} feature tokens"
                )
            if tokens is not None:
                x = x.masked_scatter(places[..., None], tokens.to(x.dtype))
        return x

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        pixels: Pixels | None = None,
        tiles: Sequence[int] = (),
        windows: Tensor | None = None,
        frames: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """ids (B, T), pixels of I pictures or tiles, windows of sounds and how many frames of each are sound (see
        `Hearing`), mask (B, T) False where padded -> (logits (B, T, V) fp32, state)."""
        features = None if pixels is None else self.encode(pixels, tiles)
        sounds = None if windows is None or frames is None else self.hear(windows, frames)
        return self.lm(x=self.embed(ids, features, sounds), state=state, mask=mask)


def _check_pool(tower: Encoder, pool: tuple[int, int]) -> None:
    rows, columns = tower.grid
    if tower.tokens != rows * columns:
        raise ValueError(
            f"the tower gives {tower.tokens} tokens, which are not the {rows} x {columns} cells of its grid"
        )
    if pool[0] > rows or pool[1] > columns:
        raise ValueError(f"a grid of {rows} x {columns} cannot be pooled to {pool[0]} x {pool[1]}")
