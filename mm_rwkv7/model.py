"""MMRWKV7: a language model that reads pictures as tokens.

Letters: B batch, T time, I pictures, M tokens per picture, D width.
"""

from torch import Tensor, nn

from encoders.build import build_tower
from encoders.protocol import Encoder, Pixels
from mm_rwkv7.config import MMConfig
from mm_rwkv7.projector import Projector
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
        if config.tower is not None and config.projector is not None:
            self.tower = build_tower(config.tower)
            if self.tower.width != config.projector.input_width:
                raise ValueError(
                    f"the projector reads width {config.projector.input_width}, "
                    f"the {config.tower.kind} tower gives {self.tower.width}"
                )
            if config.projector.positions not in (0, self.tower.tokens):
                raise ValueError(
                    f"the projector has {config.projector.positions} positions, the tower {self.tower.tokens} tokens"
                )
            self.projector = Projector(config.projector, config.lm.width)

    @property
    def image_tokens(self) -> int:
        """Placeholders per picture; 0 for a model that does not see."""
        if self.tower is None or self.projector is None:
            return 0
        return self.tower.tokens + self.projector.summary

    def encode(self, pixels: Pixels) -> Tensor:
        """Pictures as the tower's `preprocess` prepares them -> features in the embedding space (I, M, D)."""
        if self.tower is None or self.projector is None:
            raise ValueError("this model has no tower: it reads text only")
        return self.projector(self.tower(pixels))

    def embed(self, ids: Tensor, features: Tensor | None = None) -> Tensor:
        """ids (B, T), features (..., D) of all pictures in reading order -> (B, T, D).

        Raises ValueError unless there are exactly as many placeholders as feature tokens.
        """
        places = ids == self.config.image_id
        wanted = int(places.sum())
        given = 0 if features is None else features.shape[:-1].numel()
        if wanted != given:
            raise ValueError(f"the text has {wanted} image placeholders, the pictures have {given} feature tokens")
        x = self.lm.embed(ids.masked_fill(places, 0))
        if features is None:
            return x
        return x.masked_scatter(places[..., None], features.to(x.dtype))

    def forward(
        self,
        ids: Tensor,
        state: State | None = None,
        *,
        pixels: Pixels | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, State]:
        """ids (B, T), pixels of I pictures, mask (B, T) False where padded -> (logits (B, T, V) fp32, state)."""
        features = None if pixels is None else self.encode(pixels)
        return self.lm(x=self.embed(ids, features), state=state, mask=mask)
