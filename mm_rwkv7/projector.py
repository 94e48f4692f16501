"""Maps a tower's features into the embedding space of the language model.

Letters: B batch, M feature tokens per picture, E width of the tower, D width of the language model.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class ProjectorConfig:
    """`positions` learned vectors, one for each of the tower's tokens, tell where a feature lies when the tower's
    own features do not (0: none). `summary` adds one more token, the mean of the features."""

    input_width: int
    hidden_width: int
    positions: int = 0
    summary: bool = False


class Projector(nn.Module):
    """features (B, M, E) -> (B, M (+ 1 with a summary), D): LayerNorm, a two-layer perceptron, and a LayerNorm
    that brings the features to one scale; then their positions."""

    def __init__(self, config: ProjectorConfig, output_width: int) -> None:
        super().__init__()
        self.summary = config.summary
        self.ln_in = nn.LayerNorm(config.input_width)
        self.up = nn.Linear(config.input_width, config.hidden_width)
        self.act = nn.GELU()
        self.down = nn.Linear(config.hidden_width, output_width)
        self.ln_out = nn.LayerNorm(output_width)
        self.positions = nn.Parameter(torch.zeros(config.positions, output_width)) if config.positions else None

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.shape[1]
        if self.summary:
            features = torch.cat([features, features.mean(dim=1, keepdim=True)], dim=1)
        x = self.ln_out(self.down(self.act(self.up(self.ln_in(features)))))
        if self.positions is None:
            return x
        return torch.cat([x[:, :tokens] + self.positions, x[:, tokens:]], dim=1)
