"""Decoding and reading of texts whose states lie in a pool: for batches that texts join and leave at every step.

Letters: B rows, T time, D width, V vocabulary.
"""

from collections import Counter
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


def read(step: PooledStep, lm: RWKV7, x: Tensor, slots: Sequence[int], lengths: Sequence[int]) -> Tensor:
    """Read x (B, T, D), of which row i has lengths[i] steps and goes on from the state in slot slots[i] -> what the
    head reads after each row's last step (B, D)."""
    if isinstance(step, CpuPooledStep) and sum(lengths) <= step.most_read:
        return step.read(x, slots, lengths)
    where = torch.tensor(slots, device=x.device)
    hidden, after = read_rows(lm, x, lengths, step.pool.gather(where))
    step.pool.scatter(after, where)
    return hidden


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
    if compiled is None:
        return ModulePooledStep(lm, pool)
    most_read = compiled.rows * (4 if weight.dtype == torch.float32 else 1)  # oneDNN is twice as fast in bf16
    return CpuPooledStep(compiled, pool, most_read)


class CpuPooledStep:
    """By the compiled step, which changes the pool in place, as many rows at once as it takes.

    It reads short prompts, too: at most `most_read` tokens together take less time than through the modules."""

    def __init__(self, compiled: CpuStepper, pool: StatePool, most_read: int) -> None:
        self.pool, self.most_read = pool, most_read
        self._compiled = compiled

    def __call__(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        rows = self._compiled.rows
        starts = range(0, len(x), rows)
        return _joined([self._compiled.in_pool(x[i : i + rows], self.pool, slots[i : i + rows]) for i in starts])

    def read(self, x: Tensor, slots: Sequence[int], lengths: Sequence[int]) -> Tensor:
        """As `read` of this module. ValueError for a row without a step."""
        if min(lengths) < 1:
            raise ValueError(f"rows of {list(lengths)} steps, expected at least one of each")
        tokens = torch.cat([row[:length] for row, length in zip(x, lengths, strict=True)])
        of = [i for i, length in enumerate(lengths) for _ in range(length)]  # whose token each is
        found = []
        for start in range(0, len(tokens), self._compiled.rows):
            here = Counter(of[start : start + self._compiled.rows])
            some = tokens[start : start + self._compiled.rows]
            found.append(self._compiled.in_pool(some, self.pool, [slots[i] for i in here], [*here.values()]))
        return _joined(found)[torch.tensor(lengths).cumsum(0) - 1]

    def logits(self, hidden: Tensor) -> Tensor:
        return _joined([self._compiled.logits(part) for part in hidden.split(self._compiled.rows)])


class ModulePooledStep:
    """By the modules, wherever they are."""

    def __init__(self, lm: RWKV7, pool: StatePool) -> None:
        self.pool = pool
        self._lm, self._portable = lm, ModuleStepper(lm)

    def __call__(self, x: Tensor, slots: Sequence[int]) -> Tensor:
        return read(self, self._lm, x[:, None], slots, [1] * len(x))

    def logits(self, hidden: Tensor) -> Tensor:
        return self._portable.logits(hidden)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One after another; a single one is not copied, which for logits takes as long as a third of their product."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
