"""A run's checkpoints: everything that the next step depends on, written whole or not at all.

A checkpoint holds the stage, its optimizer, the running average, and how far the run is: steps, tokens, the position in
the data. The schedule and all random numbers are functions of the step. torch.distributed.checkpoint writes every
process's shards, and reads them again for any number of processes.
"""

import json
import re
import shutil
import warnings
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.tensor import DTensor

from training.distributed import World
from training.optim import Average
from training.stage import Stage

PLACE = re.compile(r"\.?step-(0|[1-9][0-9]*)")  # the folder of a checkpoint, with a point one that is not whole


@dataclass
class Progress:
    """Where a stage stands: steps done, the position in the data after them, tokens read, the usual loss."""

    step: int = 0
    position: Any = None
    tokens: int = 0
    usual: float | None = None


def kept_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that are there, oldest first."""
    return _steps(folder / "checkpoints", "")


def _steps(folder: Path, hidden: str) -> list[int]:
    """Those of the folders `step-N`, or of drafts with a "." before it. What else lies there is somebody else's."""
    found = ((PLACE.fullmatch(path.name), path) for path in folder.glob(f"{hidden}step-*"))
    return sorted(int(name[1]) for name, path in found if name and path.is_dir())


class Checkpoints:
    """Of one stage in a run's `folder`, whose steps before it are `offset`. With `asynchronous` they are written while
    the training goes on."""

    def __init__(
        self,
        folder: Path,
        offset: int,
        keep: int,
        stage: Stage,
        optimizer: torch.optim.Optimizer,
        average: Average | None,
        world: World,
        asynchronous: bool,
    ) -> None:
        self.folder, self.offset, self.keep = folder / "checkpoints", offset, keep
        self.stage, self.optimizer, self.average, self.world = stage, optimizer, average, world
        self.asynchronous = asynchronous
        if world.size == 1:  # torch says so of every checkpoint, in the middle of the progress bar
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        self.group: dist.ProcessGroup | None = None
        if asynchronous and world.size > 1:
            self.group = cast("dist.ProcessGroup", dist.new_group(backend="gloo"))
        self.writing: tuple[int, Future[Any]] | None = None

    def resume(self) -> Progress:
        """Load the newest checkpoint if it is of this stage."""
        newest = max(self.world.gather(max(kept_steps(self.folder.parent), default=0)))
        if newest <= self.offset:
            return Progress()
        states = self._states("")
        dcp.load(states, checkpoint_id=self.folder / f"step-{newest}", no_dist=self.world.size == 1)
        self.stage.load_state_dict(states["stage"])
        set_optimizer_state_dict(self.stage, self.optimizer, states["optimizer"])
        for name, mean in states["average"].items():
            assert self.average is not None
            self.average.mean[name].copy_(mean)
        return Progress(**json.loads(states["progress"]))

    def save(self, progress: Progress) -> None:
        """All processes come here with the same `progress`."""
        self.finish()
        step = self.offset + progress.step
        draft = self._draft(step)
        if self.world.first:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in _steps(self.folder, "."):  # a kill came between
                shutil.rmtree(self._draft(left))
            draft.mkdir()
        self.world.barrier()
        states = self._states(json.dumps(asdict(progress)))
        alone = self.world.size == 1
        if self.asynchronous:
            future = dcp.async_save(_copied(states), checkpoint_id=draft, process_group=self.group, no_dist=alone)
            assert isinstance(future, Future)
            self.writing = step, future
        else:
            dcp.save(states, checkpoint_id=draft, no_dist=alone)
            self._place(step)

    def finish(self) -> None:
        """Wait for what is still being written."""
        if self.writing is not None:
            step, future = self.writing
            future.result()
            self.writing = None
            self._place(step)

    def _draft(self, step: int) -> Path:
        return self.folder / f".step-{step}"

    def _place(self, step: int) -> None:
        """All of it is written: give it its name, and let go of the oldest."""
        self.world.barrier()
        if self.world.first:
            place = self.folder / f"step-{step}"
            if place.exists():  # of a run that was stopped right after it
                shutil.rmtree(place)
            self._draft(step).rename(place)
            for old in kept_steps(self.folder.parent)[: -self.keep]:
                shutil.rmtree(self.folder / f"step-{old}")
        self.world.barrier()

    def _states(self, progress: str) -> dict[str, Any]:
        return {
            "stage": self.stage.state_dict(),
            "optimizer": get_optimizer_state_dict(self.stage, self.optimizer),
            "average": {} if self.average is None else self.average.mean,
            "progress": progress,
        }


def _copied(value: Any) -> Any:
    """Copies of the tensors on the CPU: those there would be written as they are by then, and not as they are now."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_copied(item) for item in value]
    on_cpu = isinstance(value, Tensor) and (value.to_local() if isinstance(value, DTensor) else value).is_cpu
    return value.clone() if on_cpu else value
