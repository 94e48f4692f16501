"""A CUDA kernel as a value, and what launches one: a GPU's driver, or the emulation that the tests use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Argument = Tensor | int | float | None


@dataclass(frozen=True)
class Kernel:
    """One entry point of a file in `kernels/`, compiled with some sizes fixed.

    `defines` become `-D name=value`; `shared` counts the bytes of dynamic shared memory that a block takes.
    """

    source: str
    name: str
    defines: tuple[tuple[str, int | str], ...]
    threads: int
    shared: int = 0


class Launcher(Protocol):
    """Runs kernels in order on the current stream of its device."""

    device: torch.device  # of the tensors it takes
    processors: int  # streaming multiprocessors
    capability: tuple[int, int]

    def __call__(self, kernel: Kernel, grid: tuple[int, int, int], arguments: Sequence[Argument]) -> None:
        """A tensor is passed as the pointer to its first element, None as a null pointer, int as a 32-bit `int`,
        float as a 32-bit `float`."""
