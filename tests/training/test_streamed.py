"""Text stages in the loop: packs with states of their own, and endless lanes whose states a checkpoint holds."""

import dataclasses
import json
import random
import shutil
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.nn import functional as F

from mm_rwkv7 import checkpoint
from mm_rwkv7.config import MMConfig
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.rwkv7 import RWKV7Config
from training.config import RunConfig, load_recipe
from training.data.indexed import write_tokens
from training.data.packs import open_stream
from training.run import make_stage, train

SIZES = {"width": 32, "layers": 2, "head_size": 16, "decay_rank": 4, "iclr_rank": 4, "value_rank": 4, "gate_rank": 4}


def recipe(folder: Path, **settings: Any) -> RunConfig:
    """A run of one text stage from random weights, and its data."""
    rng = random.Random(0)
    if not (folder / "text.idx").exists():
        write_tokens(
            ([rng.randint(1, 40) for _ in range(rng.randint(2, 30))] + [0] for _ in range(40)), folder / "text"
        )
    stage = {"name": "read", "kind": "text", "train": ["lm"], "data": {"plain": 1}, "steps": 4, "batch": 2}
    stage |= {"learning_rate": 0.003, "warmup": 2, "context": 16, **settings}
    fields = {"run": str(folder / "run"), "data": str(folder), "lm": SIZES, "stages": [stage], "checkpoint_every": 2}
    fields |= {"sources": {"plain": {"path": "text"}}, "precision": "fp32", "workers": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return load_recipe(str(folder / "recipe.yaml"))


def losses(run: RunConfig) -> list[float]:
    lines = (Path(run.run) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles by g++")
def test_compiled_blocks_learn_the_same(tmp_path: Path) -> None:
    plain = recipe(tmp_path, steps=2)
    compiled = replace(plain, run=str(tmp_path / "compiled"), engine=replace(plain.engine, compile=True))
    for run in (plain, compiled):
        train(run, torch.device("cpu"))
    assert losses(compiled) == pytest.approx(losses(plain), rel=1e-5)


@pytest.mark.parametrize("carried", [False, True])
def test_a_text_run_goes_on_as_if_it_had_not_stopped(carried: bool, tmp_path: Path) -> None:
    run = recipe(tmp_path, carried=carried)
    train(run, torch.device("cpu"))
    whole = losses(run)
    assert len(whole) == 4
    kept = Path(run.run) / "checkpoints"
    shutil.rmtree(kept / "step-4")
    shutil.rmtree(Path(run.run) / "model")
    train(run, torch.device("cpu"))
    assert losses(run) == whole
    model = Pipeline.from_pretrained(Path(run.run) / "model", device="cpu").model
    assert model.tower is None


def test_a_lane_is_read_as_one_text(tmp_path: Path) -> None:
    """The loss of each segment is that of reading the lane's text from its beginning; the gradient is the segment's."""
    run = recipe(tmp_path, carried=True)
    (config,) = run.stages
    torch.manual_seed(1)
    model = MMRWKV7(MMConfig(RWKV7Config(65536, **SIZES), **run.prompt))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    processor = Pipeline(model).processor
    stage = make_stage(config, processor, {}, model)
    batches = list(islice(open_stream(config, run, processor).batches(packs_per_step=2), 6))
    for lane in range(2):
        segments = [batch for batch in batches if batch["lane"] == lane]
        ids, targets = (torch.cat([batch[name] for batch in segments], dim=1) for name in ("ids", "targets"))
        with torch.no_grad():
            whole = F.cross_entropy(model.lm(ids)[0][0], targets[0], reduction="none")
        for i, batch in enumerate(segments):
            loss, _ = stage.loss(batch)
            assert loss.item() == pytest.approx(whole[16 * i : 16 * i + 16].mean().item(), rel=1e-4)
        loss.backward()
        assert all(p.grad is not None for p in model.lm.parameters())
        model.zero_grad()


def test_what_a_text_stage_cannot_read_is_named(tmp_path: Path) -> None:
    run = recipe(tmp_path)
    (config,) = run.stages
    model = MMRWKV7(MMConfig(RWKV7Config(65536, **SIZES), **run.prompt))
    processor = Pipeline(model).processor
    with pytest.raises(ValueError, match=r"sources.plain has unknown fields \['kind'\]"):
        open_stream(config, replace(run, sources={"plain": {"path": "text", "kind": "llava"}}), processor)
    with pytest.raises(ValueError, match=r"sources.plain lacks \['path'\]"):
        open_stream(config, replace(run, sources={"plain": {}}), processor)
    with pytest.raises(ValueError, match=r"reads .* expected one source"):
        open_stream(replace(config, data={"plain": 1.0, "other": 1.0}), run, processor)
    trimmed = Pipeline.from_pretrained("nano", device="cpu").processor
    with pytest.raises(ValueError, match="holds World ids, the model has a vocabulary of its own"):
        open_stream(config, run, trimmed)
    with pytest.raises(ValueError, match="only texts carry their state on"):
        replace(config, kind="finetune", carried=True)


def test_a_text_stage_trains_every_parameter_of_the_language_model_and_nothing_else(tmp_path: Path) -> None:
    run = recipe(tmp_path)
    model = MMRWKV7(MMConfig(RWKV7Config(65536, **SIZES), **run.prompt))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checkpoint.save(model, tmp_path / "start", "# start")
    plain = dataclasses.replace(run, start=str(tmp_path / "start"), lm=None)
    folder = train(plain, torch.device("cpu"))
    after = load_file(folder / "model.safetensors")
    assert after.keys() == before.keys()
    assert all(name.startswith("lm.") for name in before)
    assert not [name for name, tensor in before.items() if torch.equal(tensor, after[name])]
