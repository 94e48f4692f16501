"""Several processes learn what one learns; a run that is killed goes on as if nothing had been."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.packed_run import command, environment, load, losses, make_start, write_recipe
from training.run import train

CPU = torch.device("cpu")
PATIENCE = 300  # seconds for what takes few


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_start(tmp_path_factory.mktemp("start") / "model")


def in_two_processes(*recipes: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = Path(__file__).with_name("two_processes.py")
    launched = [*launch, str(script), *map(str, recipes)]
    done = subprocess.run(launched, env=environment(1), capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr[-4000:]


@pytest.mark.slow
def test_one_process_two_and_two_with_shards_learn_the_same(start: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 20, "batch": 4, "learning_rate": 1e-3, "average": "sample", "ema": 0.9}
    alone = load(write_recipe(tmp_path / "alone", start, "finetune", **settings), "checkpoint_every=10")
    train(alone, CPU)
    folders = {}
    for kind in ("ddp", "fsdp"):
        engine = {"parallel": kind, "recompute": kind == "fsdp", "asynchronous": kind == "fsdp"}
        path = write_recipe(tmp_path / kind, start, "finetune", **settings, engine=engine)
        path.write_text(path.read_text().replace("checkpoint_every: 2", "checkpoint_every: 10"))
        folders[kind] = path
    few: dict[str, Any] = {**settings, "steps": 4}
    halves = [
        write_recipe(tmp_path / f"{kind}-bf16", start, "finetune", **few, engine={"parallel": kind})
        for kind in ("ddp", "fsdp")
    ]
    for path in halves:
        path.write_text(path.read_text().replace("precision: fp32", "precision: bf16"))
    in_two_processes(*folders.values(), *halves)
    first, second = (losses(path.parent / "run") for path in halves)
    assert first == pytest.approx(second, rel=1e-3)
    assert first != losses(Path(alone.run))[:4]
    expected = losses(Path(alone.run))
    weights = load_file(Path(alone.run) / "model/model.safetensors")
    for kind, recipe in folders.items():
        run = recipe.parent / "run"
        assert losses(run)[:20] == pytest.approx(expected, rel=1e-5), kind
        found = load_file(run / "model/model.safetensors")
        for name, tensor in weights.items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=1e-5, msg=f"{kind}: {name}")

    # What two processes left half-way, one goes on with: the step is 10, the rest is gone.
    half = folders["fsdp"].parent / "run"
    for left in (half / "checkpoints").iterdir():
        if left.name != "step-10":
            shutil.rmtree(left)
    train(load(folders["fsdp"]), CPU)
    assert losses(half)[:20] == pytest.approx(expected, rel=1e-5)


def wait_for_step(folder: Path, step: int, process: "subprocess.Popen[bytes]") -> None:
    began = time.monotonic()
    while time.monotonic() < began + PATIENCE:
        assert process.poll() is None, "the run ended by itself"
        log = folder / "log.jsonl"
        if log.exists() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"no step {step} within {PATIENCE} seconds")


@pytest.mark.slow
def test_a_killed_run_of_every_kind_goes_on_bit_for_bit(start: Path, tmp_path: Path) -> None:
    """By kill -9 in the second stage, then by SIGTERM in the third, which keeps a checkpoint first."""
    kinds = ("align", "finetune", "lora", "state")
    settings: dict[str, Any] = {"steps": 8, "engine": {"log": ["tensorboard"]}}
    straight = load(write_recipe(tmp_path / "straight", start, *kinds, **settings))
    train(straight, CPU)
    path = write_recipe(tmp_path / "killed", start, *kinds, **settings)
    text = path.read_text().replace("checkpoint_every: 2", "checkpoint_every: 3")
    path.write_text(text.replace("workers: 0", "workers: 1"))
    folder = tmp_path / "killed/run"
    for number, step in ((signal.SIGKILL, 13), (signal.SIGTERM, 18)):
        alike = environment(torch.get_num_threads())
        pipes: Any = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
        with subprocess.Popen(command(path, step), env=alike, **pipes) as process:
            try:
                wait_for_step(folder, step, process)
                process.send_signal(number)
                _, errors = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 143), errors[-2000:]
        if number == signal.SIGTERM:
            last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
            assert (folder / f"checkpoints/step-{last}").is_dir()
    train(load(path), CPU)
    assert losses(folder) == losses(Path(straight.run))
    for name in ("model/model.safetensors", "state.safetensors", "adapter/adapter_model.safetensors"):
        expected, found = load_file(Path(straight.run) / name), load_file(folder / name)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items()), name
    assert list((folder / "tensorboard").iterdir())


@contextmanager
def two_ranks(recipe: Path, step: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """As torchrun starts them, but with nobody who ends one of them when the other is gone. The first, which writes the
    log, waits after `step` until its input ends, and the other one for the first."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    place = {**environment(1), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    quiet: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    ranks = [subprocess.Popen(command(recipe, step), env={**place, "RANK": str(rank)}, **quiet) for rank in range(2)]
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.communicate()


@pytest.mark.slow
def test_two_ranks_that_are_stopped_go_on(start: Path, tmp_path: Path) -> None:
    """One rank is told to end: both finish the step and keep it. One is killed: the other
    one ends too. What they left, both go on with."""
    settings: dict[str, Any] = {"steps": 60, "batch": 4, "learning_rate": 1e-3}
    alone = load(write_recipe(tmp_path / "alone", start, "finetune", **settings))
    train(alone, CPU)
    path = write_recipe(
        tmp_path / "stopped", start, "finetune", **settings, engine={"parallel": "fsdp", "asynchronous": True}
    )
    folder = tmp_path / "stopped/run"
    with two_ranks(path, 3) as ranks:
        wait_for_step(folder, 3, ranks[0])
        ranks[1].send_signal(signal.SIGTERM)
        ranks[0].stdin.close()  # type: ignore[union-attr]
        assert [process.wait(PATIENCE) for process in ranks] == [143, 143]
    last = json.loads((folder / "log.jsonl").read_text().splitlines()[-1])["step"]
    assert last < 57
    assert (folder / f"checkpoints/step-{last}/.metadata").is_file()
    parts = {part.name for part in (folder / f"checkpoints/step-{last}").glob("*.distcp")}
    assert parts == {"__0_0.distcp", "__1_0.distcp"}, "every rank writes its part"
    with two_ranks(path, last + 3) as ranks:
        wait_for_step(folder, last + 3, ranks[0])
        ranks[0].send_signal(signal.SIGKILL)
        assert ranks[1].wait(PATIENCE) > 0
    with two_ranks(path, 0) as ranks:
        assert [process.wait(PATIENCE) for process in ranks] == [0, 0]
    assert losses(folder) == pytest.approx(losses(Path(alone.run)), rel=1e-5)
    assert not list((folder / "checkpoints").glob(".step-*"))
