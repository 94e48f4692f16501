import re
from pathlib import Path

import pytest
import torch
import yaml

from mm_rwkv7 import checkpoint
from tests.training.packed_run import TRAINS, load, make_start, write_recipe
from training.config import RECIPES, load_any
from training.dry_run import dry_run
from training.study import StudyConfig

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "model")


def numbers(text: str, part: str) -> tuple[int, int]:
    found = re.search(rf"#   {part}: ([\d,]+) trained, ([\d,]+) frozen", text)
    assert found is not None, text
    trained, frozen = (int(number.replace(",", "")) for number in found.groups())
    return trained, frozen


def test_every_stage_is_counted(start: Path, tmp_path: Path) -> None:
    model = checkpoint.load(start)
    lm, projector = (sum(p.numel() for p in part.parameters()) for part in (model.lm, model.projector))
    wkv = sum(layer.wkv.numel() for layer in model.lm.initial_state().layers)
    told = {}
    for kind in TRAINS:
        text = told[kind] = dry_run(load(write_recipe(tmp_path / kind, start, kind)), CPU, 1)
        assert yaml.safe_load(text)["stages"][0]["kind"] == kind
        assert f"# stage {kind} ({kind}): 4 steps of 2 packs of 96 tokens: 768 tokens at most" in text
    assert numbers(told["align"], "projector") == (projector, 0)
    assert numbers(told["align"], "lm") == (0, lm)
    assert numbers(told["finetune"], "lm") == (lm, 0)
    assert numbers(told["state"], "wkv") == (wkv, 0)
    assert numbers(told["state"], "lm") == (0, lm)
    trained, frozen = numbers(told["lora"], "lm")
    vectors = sum(p.numel() for n, p in model.lm.named_parameters() if p.ndim == 1 or n.endswith("r_k"))
    maps = [
        p for n, p in model.lm.blocks.named_parameters() if n.split(".")[-2] in ("receptance", "key", "value", "output")
    ]
    assert trained == vectors + sum(4 * sum(p.shape) for p in maps)
    assert trained + frozen == lm + sum(4 * sum(p.shape) for p in maps)
    w0 = sum(p.numel() for n, p in model.lm.named_parameters() if n.endswith("w0"))
    assert f"double {w0:,}" in told["finetune"]
    assert "double" not in told["align"]


def test_a_run_that_cannot_begin_says_why(start: Path, tmp_path: Path) -> None:
    run = load(write_recipe(tmp_path, start, "align"), "lm={width: 128, layers: 2}")
    assert "# this run would not begin: " in dry_run(run, CPU, 1)


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_recipe_here_can_be_read(path: Path) -> None:
    run = load_any(path.stem)
    assert isinstance(run, StudyConfig) or run.stages
