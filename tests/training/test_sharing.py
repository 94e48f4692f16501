"""Processes that share every pack of a text learn what one process learns."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.training.packed_run import environment, load, losses
from training.config import RunConfig
from training.data.indexed import write_tokens
from training.distributed import World
from training.run import train

CPU = torch.device("cpu")
PATIENCE = 300  # seconds for what takes few
SIZES = {"width": 32, "layers": 2, "head_size": 16, "decay_rank": 4, "iclr_rank": 4, "value_rank": 4, "gate_rank": 4}


def write_recipe(folder: Path, data: Path, **settings: Any) -> Path:
    """A run of one text stage from random weights."""
    stage = {"name": "read", "kind": "text", "train": ["lm"], "data": {"plain": 1}, "steps": 20, "batch": 2}
    stage |= {"learning_rate": 0.003, "warmup": 2, "context": 33, "l2wrap": 1e-4, **settings}
    fields = {"run": str(folder / "run"), "data": str(data), "lm": SIZES, "stages": [stage], "checkpoint_every": 10}
    fields |= {"sources": {"plain": {"path": "text"}}, "precision": "fp32", "workers": 0}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fields), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = random.Random(0)
    folder = tmp_path_factory.mktemp("data")
    write_tokens(([rng.randint(1, 40) for _ in range(rng.randint(2, 50))] + [0] for _ in range(60)), folder / "text")
    return folder


def in_processes(count: int, *recipes: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
    script = Path(__file__).with_name("two_processes.py")
    done = subprocess.run(
        [*launch, str(script), *map(str, recipes)],
        env=environment(1),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def logged(run: Path) -> list[dict[str, Any]]:
    return list(map(json.loads, (run / "log.jsonl").read_text().splitlines()))


@pytest.mark.slow
def test_groups_that_share_packs_learn_what_one_process_learns(data: Path, tmp_path: Path) -> None:
    """Two groups of two, on documents with a state of their own and on endless lanes; a step that they skip names the
    samples that one process names; then one group of two goes on with the lanes where both were half-way."""
    kinds: dict[str, dict[str, Any]] = {"documents": {}, "lanes": {"carried": True}}
    shared = []
    for kind, settings in kinds.items():
        path = write_recipe(tmp_path / kind, data, **settings)
        path.write_text(path.read_text() + "engine: {context_parallel: 2, recompute: true}\n")
        shared.append(path)
    skipping = {}
    for kind, context in (("skipped", 2), ("skipped-alone", 1)):  # the first step makes weights that no sum survives
        skipping[kind] = write_recipe(tmp_path / kind, data, steps=2, learning_rate=1e38)
        engine = f"engine: {{context_parallel: {context}, on_bad_loss: skip}}\n"
        skipping[kind].write_text(skipping[kind].read_text() + engine)
    in_processes(4, *shared, skipping["skipped"])
    train(load(skipping["skipped-alone"]), CPU)
    (_, named), (_, wanted) = (logged(tmp_path / kind / "run") for kind in skipping)
    assert named["samples"] == wanted["samples"] != []
    for kind, settings in kinds.items():
        alone = load(write_recipe(tmp_path / f"{kind}-alone", data, **settings))
        train(alone, CPU)
        expected, run = losses(Path(alone.run)), tmp_path / kind / "run"
        assert losses(run) == pytest.approx(expected, rel=1e-5), kind
        assert expected[-1] < expected[0]
        weights, found = (load_file(folder / "model/model.safetensors") for folder in (Path(alone.run), run))
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=f"{kind}: {name}")

    for left in (tmp_path / "lanes/run/checkpoints").iterdir():
        if left.name != "step-10":
            shutil.rmtree(left)
    in_processes(2, shared[1])
    assert losses(tmp_path / "lanes/run") == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["engine.context_parallel=0"], "engine.context_parallel is 0, expected at least 1"),
        (["engine.parallel=fsdp"], "engine.parallel 'fsdp': processes that share packs need all weights"),
        (["stages.read.average=sample"], "cannot be shared in stage 'read': it has average 'sample', expected 'token'"),
        (["stages.read.context=1"], "cannot be shared in stage 'read': it has packs of 1 tokens"),
        (
            ["stages.read.kind=align", "stages.read.train=[projector]", "start=nano"],
            "cannot be shared in stage 'read': it is of kind 'align', expected 'text'",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused(data: Path, tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(write_recipe(tmp_path, data), "engine.context_parallel=2", *changes)


def test_processes_that_cannot_be_grouped_are_named(data: Path, tmp_path: Path) -> None:
    run: RunConfig = load(write_recipe(tmp_path, data), "engine.context_parallel=2")
    with pytest.raises(ValueError, match=r"engine.context_parallel is 2: 1 processes cannot be divided into groups"):
        train(run, CPU)
    assert not Path(run.run).exists()
    with pytest.raises(ValueError, match="is 2: 3 processes cannot be divided"):
        World(CPU, 0, 3).sharing(2)
