"""The picture encoder of SAM ViT-B (Segment Anything, arXiv 2304.02643), as VisualRWKV reads it.

Letters: I pictures, S side of the prepared picture, M tokens, E width of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from encoders.protocol import Preprocess
from encoders.timm_model import check_name, check_options
from encoders.tower import Grid, Tower, map_tokens


@dataclass(frozen=True)
class SamTowerConfig:
    """`preprocess.size` is 1024 in the published model. Each `unshuffle` x `unshuffle` cells become one token:
    2 makes 32 x 32 tokens of width 1024 out of 64 x 64 of width 256, with channel c * 4 + dy * 2 + dx.

    `name` is timm's, `options` are further arguments of `timm.create_model`.
    """

    preprocess: Preprocess
    unshuffle: int = 2
    name: str = "samvit_base_patch16"
    options: Mapping[str, Any] = field(default_factory=dict)
    kind: str = "sam"

    def __post_init__(self) -> None:
        check_options(self.options)
        if self.unshuffle < 1:
            raise ValueError(f"unshuffle is {self.unshuffle}, expected at least 1 cell")


class SamTower(Tower):
    """pixels (I, 3, S, S) uint8 -> what SAM's neck gives, unshuffled (I, M, E), row by row."""

    def __init__(self, config: SamTowerConfig, pretrained: bool = False) -> None:
        import timm

        check_name(config.name)

        def make(pretrained: bool) -> Any:
            return timm.create_model(
                config.name,
                pretrained=pretrained,
                num_classes=0,
                img_size=config.preprocess.size,
                norm_layer=partial(nn.LayerNorm, eps=1e-6),  # SAM's; timm's own 1e-5 moves the features
                **config.options,
            )

        self.config = config
        super().__init__(config.preprocess, make, pretrained)

    def read(self, body: Any, pictures: Tensor) -> tuple[Tensor, Grid]:
        return map_tokens(F.pixel_unshuffle(body.forward_features(pictures), self.config.unshuffle))


def own_name(name: str) -> str:
    """The name in `SamTower` of a tensor of SAM's own files (`image_encoder.blocks.0.mlp.lin1.weight`, with or without
    the first part)."""
    return "body." + name.removeprefix("image_encoder.").replace(".mlp.lin", ".mlp.fc")
