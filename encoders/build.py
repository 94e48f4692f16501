"""From a tower's config to the tower."""

from encoders.concat import ConcatTower, ConcatTowerConfig, SingleTowerConfig
from encoders.open_clip_tower import OpenClipTower, OpenClipTowerConfig
from encoders.protocol import Encoder
from encoders.sam import SamTower, SamTowerConfig
from encoders.timm_tower import TimmTower
from encoders.tower import Tower
from encoders.transformers_tower import TransformersTower, TransformersTowerConfig

TowerConfig = SingleTowerConfig | ConcatTowerConfig  # told apart by `kind`; without one it is timm's


def build_tower(config: TowerConfig, pretrained: bool = False) -> Encoder:
    """The tower that `config` describes: with the weights that are published under its name, or with random ones, to
    be replaced by a checkpoint's. Under `torch.device("meta")` its parameters take no memory."""
    if isinstance(config, ConcatTowerConfig):
        return ConcatTower([_build_single(part, pretrained) for part in config.towers])
    return _build_single(config, pretrained)


def _build_single(config: SingleTowerConfig, pretrained: bool) -> Tower:
    match config:
        case TransformersTowerConfig():
            return TransformersTower(config, pretrained)
        case OpenClipTowerConfig():
            return OpenClipTower(config, pretrained)
        case SamTowerConfig():
            return SamTower(config, pretrained)
        case _:
            return TimmTower(config, pretrained)
