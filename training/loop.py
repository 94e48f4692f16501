"""The loop: draw a batch, take a step, log it, keep a checkpoint now and then, and go on where it stopped.

A batch is a pure function of (seed, stage, step), so that resuming needs no position in the data.
"""

import json
import math
import random
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.weights import replacing
from training.config import RunConfig, StageConfig, describe
from training.data import AnySource
from training.optim import build_optimizer, gradient_norm, set_learning_rate


class Stage(nn.Module):
    """How samples become a batch, and a batch a loss. A stage holds the whole model, beside what only it needs, so
    that every checkpoint holds what the next stage starts from."""

    def __init__(self, model: MMRWKV7) -> None:
        super().__init__()
        self.model = model

    def collate(self, drawn: Sequence[tuple[str, Any]], rng: random.Random) -> dict[str, Any]:
        """(source, sample) pairs, of the kinds of samples that the stage is made for -> one batch of tensors."""
        raise NotImplementedError

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """-> (scalar loss, what to log beside it)."""
        raise NotImplementedError

    def finish(self) -> None:
        """Called after the last step, and again if a run that was done is started anew."""


class Steps(Dataset[dict[str, Any]]):
    """The batch of every step of a stage, drawn from its sources by weight."""

    def __init__(self, stage: Stage, config: StageConfig, sources: Mapping[str, AnySource], seed: int) -> None:
        self.stage, self.config, self.sources, self.seed = stage, config, sources, seed

    def __len__(self) -> int:
        return self.config.steps

    def __getitem__(self, step: int) -> dict[str, Any]:
        rng = random.Random(f"{self.seed} {self.config.name} {step}")
        names = rng.choices(list(self.config.data), list(self.config.data.values()), k=self.config.batch)
        return self.stage.collate([(name, self.sources[name].train(rng)) for name in names], rng)


def train_stage(
    stage: Stage,
    config: StageConfig,
    run: RunConfig,
    sources: Mapping[str, AnySource],
    folder: Path,
    offset: int,
) -> None:
    """Run one stage to its end. `offset` counts the steps of the stages before it: a run numbers its steps
    through."""
    optimizer = build_optimizer(stage.named_parameters(), config)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    device = parameters[0].device
    start = _resume(folder, offset, stage, optimizer)
    steps = range(start, config.steps)
    workers = run.workers if sys.platform == "linux" else 0  # sources are shared by forking
    loader = DataLoader(
        Steps(stage, config, sources, run.seed),
        sampler=steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    half = autocast_wanted(run.precision, device)
    began = time.time()
    with (
        (folder / "log.jsonl").open("a", encoding="utf-8", buffering=1) as log,
        tqdm(total=config.steps, initial=start, desc=config.name, unit="step") as bar,
    ):
        for step, batch in zip(steps, loader, strict=True):
            tick = time.perf_counter()
            rate = set_learning_rate(optimizer, config, step)
            with torch.autocast(device.type, torch.bfloat16, enabled=half):
                loss, report = stage.loss(_to(batch, device))
            if not torch.isfinite(loss):
                raise RuntimeError(f"stage {config.name}, step {step}: the loss is {loss.item()}")
            loss.backward()
            norm = gradient_norm(parameters, config.clip)
            if not math.isfinite(norm):
                raise RuntimeError(f"stage {config.name}, step {step}: the norm of the gradients is {norm}")
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            seconds = time.perf_counter() - tick
            report = {name: value for name, value in report.items() if math.isfinite(value)}
            tokens = report.pop("tokens", float(config.batch))
            record = {"step": offset + step + 1, "stage": config.name, "loss": loss.item(), "lr": rate}
            record |= {"grad_norm": norm, "tokens": tokens, "tokens_per_s": tokens / seconds}
            record |= {"time": time.time() - began, **report}
            log.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in record.items()}) + "\n")
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            if (step + 1) % run.checkpoint_every == 0 or step + 1 == config.steps:
                _keep(folder, offset + step + 1, stage, optimizer, run.keep)
    stage.finish()


def autocast_wanted(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bf16: "auto" says yes where the hardware multiplies bf16 natively."""
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def write_config(folder: Path, run: RunConfig) -> None:
    """`config.yaml`: the run, resolved. A folder of another run is refused."""
    text = describe(run)
    path = folder / "config.yaml"
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise ValueError(f"{path} is of a run with other settings; give this one another folder (--set run=DIR)")
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _to(value: Any, device: torch.device) -> Any:
    if isinstance(value, Mapping):
        return {key: _to(item, device) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_to(item, device) for item in value]
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def kept_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are there, oldest first."""
    return sorted(int(path.name.removeprefix("step-")) for path in (folder / "checkpoints").glob("step-*"))


def _states(stage: Stage, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    return {"stage": stage.state_dict(), "optimizer": get_optimizer_state_dict(stage, optimizer)}


def _keep(folder: Path, step: int, stage: Stage, optimizer: torch.optim.Optimizer, number: int) -> None:
    with replacing(folder / "checkpoints" / f"step-{step}") as draft:
        dcp.save(_states(stage, optimizer), checkpoint_id=draft, no_dist=True)
    for old in kept_steps(folder)[:-number]:
        shutil.rmtree(folder / "checkpoints" / f"step-{old}")


def _resume(folder: Path, offset: int, stage: Stage, optimizer: torch.optim.Optimizer) -> int:
    """Load the newest checkpoint if it is of this stage, and forget what the log says of later steps; returns how
    many of its steps are done."""
    newest = max(kept_steps(folder), default=0)
    _cut_log(folder / "log.jsonl", max(newest, offset))
    if newest <= offset:
        return 0
    states = _states(stage, optimizer)
    dcp.load(states, checkpoint_id=folder / "checkpoints" / f"step-{newest}", no_dist=True)
    stage.load_state_dict(states["stage"])
    set_optimizer_state_dict(stage, optimizer, states["optimizer"])
    return newest - offset


def _cut_log(path: Path, step: int) -> None:
    """Keep the lines up to `step`; a kill may have left later ones, the last of them torn."""
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    whole = [line for line in lines if line.endswith("}")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
    draft.replace(path)
