import pytest
import timm
import torch

from encoders.build import TowerConfig, build_tower
from encoders.catalogue import CATALOGUE, Entry
from encoders.concat import ConcatTowerConfig
from encoders.sam import SamTowerConfig
from encoders.timm_tower import TimmTowerConfig


def timm_names(config: TowerConfig) -> list[str]:
    if isinstance(config, ConcatTowerConfig):
        return [name for part in config.towers for name in timm_names(part)]
    return [config.name] if isinstance(config, TimmTowerConfig | SamTowerConfig) else []


@pytest.mark.slow
@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_width_and_tokens_are_those_of_the_architecture(entry: Entry) -> None:
    with torch.device("meta"):
        tower = build_tower(entry.config)
    assert (tower.width, tower.tokens) == (entry.width, entry.tokens)


@pytest.mark.parametrize("entry", CATALOGUE, ids=lambda entry: entry.name)
def test_licences_are_those_that_timm_records(entry: Entry) -> None:
    names = timm_names(entry.config)
    assert bool(names) == (entry.library == "timm")
    assert all(timm.get_pretrained_cfg(name).license == entry.licence for name in names)


def test_names_are_unique() -> None:
    assert len({entry.name for entry in CATALOGUE}) == len(CATALOGUE)
