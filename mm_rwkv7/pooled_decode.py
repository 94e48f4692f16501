"""Decoding and reading of texts whose states lie in a pool: for batches that texts join and leave at every step.

Letters: B rows, T time, D width, V vocabulary.
"""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from mm_rwkv7.cpu_decode import CpuStepper
from mm_rwkv7.cuda_decode import CudaStepper
from mm_rwkv7.decode import ModuleStepper
from mm_rwkv7.generate import read_rows
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state_pool import StatePool


class PooledStep(Protocol):
    """One model's decoding over one pool. Not for several threads."""

    @property
    def pool(self) -> StatePool: ...

    def __call__(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        """x (B, D) as `RWKV7.embed` gives it, row i for the text in slot slots[i] -> what the head reads (B, D)."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, D) as a step gives it -> (B, V) fp32."""


def pooled_step(lm: RWKV7, slots: int) -> PooledStep:
    """The fastest way to decode so many texts with `lm` where it is, for as long as its weights stay what they are."""
    weight = lm.emb.weight
    if weight.is_cuda:
        stepper = CudaStepper.of(lm)
        if stepper is not None:
            return stepper.pooled(slots)
    dtype = torch.float32 if weight.is_cpu else weight.dtype  # of the shifts: the step on a CPU computes with fp32
    pool = StatePool(lm.config, slots, dtype, weight.device)
    compiled = CpuStepper.of(lm) if weight.is_cpu else None
    return ModulePooledStep(lm, pool) if compiled is None else CpuPooledStep(compiled, pool)


def read(lm: RWKV7, pool: StatePool, x: Tensor, slots: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Read x (B, T, D), of which row i has lengths[i] steps and goes on from the state in slot slots[i] -> what the
    head reads after each row's last step (B, D)."""
    where = torch.tensor(slots, device=x.device)
    hidden, after = read_rows(lm, x, lengths, pool.gather(where))
    pool.scatter(after, where)
    return hidden


class CpuPooledStep:
    """By the compiled step, which changes the pool in place, as many rows at once as it takes."""

    def __init__(self, compiled: CpuStepper, pool: StatePool) -> None:
        self.pool = pool
        self._compiled = compiled

    def __call__(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        rows = self._compiled.rows
        starts = range(0, len(x), rows)
        return torch.cat([self._compiled.in_pool(x[i : i + rows], self.pool, slots[i : i + rows]) for i in starts])

    def logits(self, hidden: Tensor) -> Tensor:
        return torch.cat([self._compiled.logits(part) for part in hidden.split(self._compiled.rows)])


class ModulePooledStep:
    """By the modules, wherever they are."""

    def __init__(self, lm: RWKV7, pool: StatePool) -> None:
        self.pool = pool
        self._lm, self._portable = lm, ModuleStepper(lm)

    def __call__(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        return read(self._lm, self.pool, x[:, None], slots, [1] * len(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._portable.logits(hidden)
