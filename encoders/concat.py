"""Several towers side by side: each cell of the grid gets the features of all of them.

VisualRWKV's are DINOv2, SigLIP and SAM, in this order: 1024 + 1152 + 1024 = 3200 channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from encoders.open_clip_tower import OpenClipTowerConfig
from encoders.protocol import Encoder, Pixels, Preprocess, Views
from encoders.sam import SamTowerConfig
from encoders.timm_tower import TimmTowerConfig
from encoders.tower import Tower
from encoders.transformers_tower import TransformersTowerConfig

SingleTowerConfig = TimmTowerConfig | TransformersTowerConfig | OpenClipTowerConfig | SamTowerConfig


@dataclass(frozen=True)
class ConcatTowerConfig:
    """The towers in the order of their channels. All must have one grid."""

    towers: tuple[SingleTowerConfig, ...]
    kind: str = "concat"

    def __post_init__(self) -> None:
        if not self.towers:
            raise ValueError("there are no towers to concatenate")


class ConcatTower(Encoder):
    """pixels, one tensor (I, 3, S, S) for each tower -> features (I, M, E), E being the sum of the towers' widths.

    Weights are named `towers.0.`, `towers.1.`, ... and then as in that tower.
    """

    def __init__(self, towers: Sequence[Tower]) -> None:
        super().__init__()
        grids = [tower.grid for tower in towers]
        if len({(tower.grid, tower.tokens) for tower in towers}) != 1:
            raise ValueError(f"the towers have grids {grids}, expected one grid, and no class tokens, for all")
        self.towers = nn.ModuleList(towers)
        self.grid, self.tokens = towers[0].grid, towers[0].tokens
        self.width = sum(tower.width for tower in towers)
        views: list[Preprocess] = [tower.preprocess for tower in towers]
        self.preprocess = Views(tuple(views))

    def forward(self, pixels: Pixels) -> Tensor:
        if isinstance(pixels, Tensor) or len(pixels) != len(self.towers):
            given = 1 if isinstance(pixels, Tensor) else len(pixels)
            raise ValueError(f"pixels have {given} views of each picture, expected {len(self.towers)}")
        return torch.cat([tower(view) for tower, view in zip(self.towers, pixels, strict=True)], dim=-1)
