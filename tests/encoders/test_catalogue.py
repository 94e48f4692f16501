import pytest
import timm
import torch

from encoders.build import SoundEncoderConfig, TowerConfig, build_sound, build_tower
from encoders.catalogue import CATALOGUE, SOUNDS, Entry
from encoders.concat import ConcatTowerConfig
from encoders.sam import SamTowerConfig
from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.ops import wkv7


def timm_names(config: TowerConfig | SoundEncoderConfig) -> list[str]:
    if isinstance(config, ConcatTowerConfig):
        return [name for part in config.towers for name in timm_names(part)]
    return [config.name] if isinstance(config, TimmTowerConfig | SamTowerConfig) else []


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_width_and_tokens_are_those_of_the_architecture(entry: Entry) -> None:
    assert not isinstance(entry.config, SoundEncoderConfig)
    with torch.device("meta"):
        tower = build_tower(entry.config)
    assert (tower.width, tower.tokens) == (entry.width, entry.tokens)


@pytest.mark.parametrize("entry", SOUNDS, ids=lambda entry: entry.name)
def test_width_and_tokens_are_those_of_the_sound_encoder(entry: Entry) -> None:
    assert isinstance(entry.config, SoundEncoderConfig)
    with torch.device("meta"):
        encoder = build_sound(entry.config, wkv7)
    assert (encoder.width, encoder.tokens) == (entry.width, entry.tokens)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_licences_are_those_that_timm_records(entry: Entry) -> None:
    names = timm_names(entry.config)
    assert bool(names) == (entry.library == "timm")
    assert all(timm.get_pretrained_cfg(name).license == entry.licence for name in names)


def test_names_are_unique() -> None:
    assert len({entry.name for entry in (*CATALOGUE, *SOUNDS)}) == len(CATALOGUE) + len(SOUNDS)
