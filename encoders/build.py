"""From a tower's config to the tower, and from a sound encoder's to the encoder."""

from encoders.ast import AST, ASTConfig
from encoders.birwkv7 import BiRWKV7, BiRWKV7Config, Scan
from encoders.concat import ConcatTower, ConcatTowerConfig, SingleTowerConfig
from encoders.open_clip_tower import OpenClipTower, OpenClipTowerConfig
from encoders.protocol import Encoder
from encoders.sam import SamTower, SamTowerConfig
from encoders.sound import SoundEncoder
from encoders.timm_tower import TimmTower
from encoders.tower import Tower
from encoders.transformers_tower import TransformersTower, TransformersTowerConfig
from encoders.wavlm import WavLM, WavLMConfig
from encoders.whisper import Whisper, WhisperConfig

TowerConfig = SingleTowerConfig | ConcatTowerConfig  # told apart by `kind`; without one it is timm's
SoundEncoderConfig = BiRWKV7Config | ASTConfig | WhisperConfig | WavLMConfig

# What the libraries raise for sizes and options that they do not check.
UNCHECKED = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError)


def build_tower(config: TowerConfig, pretrained: bool = False) -> Encoder:
    """The tower that `config` describes: with the weights that are published under its name, or with random ones, to
    be replaced by a checkpoint's. Under `torch.device("meta")` its parameters take no memory. Raises ValueError where
    the config describes none."""
    try:
        return _build(config, pretrained)
    except UNCHECKED as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the {config.kind} tower cannot be built: {type(error).__name__}: {reason}") from error


def _build(config: TowerConfig, pretrained: bool) -> Encoder:
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


def build_sound(config: SoundEncoderConfig, scan: Scan, pretrained: bool = False) -> SoundEncoder:
    """The sound encoder that `config` describes: with the weights that are published under its name, or with random
    ones, to be replaced by a checkpoint's. `scan` is the recurrence of those that have one: `mm_rwkv7.ops.wkv7`. Raises
    ValueError where the config describes none."""
    try:
        return _build_sound(config, scan, pretrained)
    except UNCHECKED as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the {config.kind} encoder cannot be built: {type(error).__name__}: {reason}") from error


def _build_sound(config: SoundEncoderConfig, scan: Scan, pretrained: bool) -> SoundEncoder:
    match config:
        case WhisperConfig():
            return Whisper(config, pretrained)
        case WavLMConfig():
            return WavLM(config, pretrained)
    if pretrained:
        raise ValueError(f"no weights of the {config.kind} encoder are published under a name")
    return AST(config) if isinstance(config, ASTConfig) else BiRWKV7(config, scan)
