"""The processes that train together, as torchrun starts them: who they are and what they tell each other."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class World:
    """This process among `size` of them, all of which come to every method. One alone needs no process group.

    Each `context` neighbours, which are a `group`, share every pack that they read: a span of it each."""

    device: torch.device
    rank: int = 0
    size: int = 1
    context: int = 1
    group: dist.ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    @property
    def reader(self) -> int:
        """Which of the `readers` of different packs this process belongs to."""
        return self.rank // self.context

    @property
    def readers(self) -> int:
        return self.size // self.context

    def sharing(self, context: int) -> "World":
        """The same world, in which each `context` neighbours share their packs."""
        if self.size % context:
            raise ValueError(
                f"engine.context_parallel is {context}: {self.size} processes cannot be divided into groups of as many"
            )
        if context == 1:
            return self
        first = range(0, self.size, context)
        groups = [dist.new_group(list(range(rank, rank + context))) for rank in first]
        return replace(self, context=context, group=cast("dist.ProcessGroup", groups[self.rank // context]))

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of the processes' values, in fp64."""
        if self.size == 1:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        found: list[float] = total.tolist()
        return found

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order."""
        if self.size == 1:
            return [value]
        found = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def barrier(self) -> None:
        """Wait for all."""
        if self.size > 1:
            dist.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[World]:
    """The world that torchrun's environment describes, for as long as the block lasts; without torchrun, this process
    alone. On GPUs every process takes its own."""
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        yield World(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    # Checkpoints and messages travel between processors also where the training is on GPUs.
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    try:
        yield World(device, dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
