"""One token at a time: what `generate` calls for every token that it writes.

B rows (texts that are written side by side), D width, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from mm_rwkv7.cpu_decode import CpuStepper
from mm_rwkv7.cuda_decode import CudaStepper
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import State


class Stepper(Protocol):
    """One model's decoding, without gradients. It reads the model's weights where they lie, so it sees every change
    of them, and it may be used for as many texts as one likes."""

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, D) as `RWKV7.embed` gives it -> (what the head reads (B, D) as `RWKV7.hidden` gives it, a new state).
        The given state stays as it is."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, D) as a step gives it -> (B, V) fp32."""


def stepper(lm: RWKV7) -> Stepper:
    """The fastest way to decode with `lm` wherever it is, also after its weights were changed, cast or moved. Whoever
    replaces a module of `lm` asks for another one."""
    return _Following(lm)


@dataclass(frozen=True)
class ModuleStepper:
    """The portable path: the modules themselves, with a time of one."""

    lm: RWKV7

    @torch.no_grad()
    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = self.lm.hidden(x[:, None], state)
        return hidden[:, 0], state

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.lm.head(hidden)
        return found.float()


class _Following:
    """Chooses anew when a parameter or buffer lies elsewhere than before or is of another dtype, and on a GPU, where
    some are copied, when one was changed."""

    def __init__(self, lm: RWKV7) -> None:
        self._lm = lm
        self._portable = ModuleStepper(lm)
        modules, head = (lm.modules(), lm.head.modules()) if isinstance(lm, RWKV7) else ((), ())
        self._all, self._head = _holders(modules), _holders(head)
        self._places: list[object] = []
        self._head_places: list[object] = []
        self._compiled: CpuStepper | CudaStepper | None = None

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        if isinstance(self._compiled, CudaStepper) and len(x) <= self._compiled.rows and x.is_cuda:
            found = self._compiled(x, state)
            if _look(self._all) == self._places:  # while the GPU works
                return found
        return self._current(x)(x, state)

    def logits(self, hidden: Tensor) -> Tensor:
        if self._compiled and 1 <= len(hidden) <= self._compiled.rows and _look(self._head) == self._head_places:
            return self._compiled.logits(hidden)  # reads nothing else
        return self._current(hidden).logits(hidden)

    def _current(self, rows: Tensor) -> Stepper:
        places = _look(self._all)
        if places != self._places:
            self._head_places = _look(self._head)
            on_gpu = bool(places) and self._lm.emb.weight.is_cuda
            self._compiled, self._places = (CudaStepper if on_gpu else CpuStepper).of(self._lm), places
        if self._compiled is None or not 1 <= len(rows) <= self._compiled.rows:
            return self._portable  # matrix products are as good for many rows
        return self._compiled


def _holders(modules: Iterable[nn.Module]) -> list[dict[str, Any]]:
    """Where modules keep their tensors by name."""
    return [holder for module in modules for holder in (module._parameters, module._buffers) if holder]


def _look(holders: Sequence[dict[str, Any]]) -> list[object]:
    """Where the tensors lie and what they are."""
    tensors: list[Tensor] = [tensor for holder in holders for tensor in holder.values() if tensor is not None]
    places: list[object] = [tensor.data_ptr() for tensor in tensors]
    places += [tensor.dtype for tensor in tensors]
    if tensors and tensors[0].is_cuda:
        places += [0 if tensor.is_inference() else tensor._version for tensor in tensors]
    return places
