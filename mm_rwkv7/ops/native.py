"""WKV-7 on a CPU by the C kernel `kernels/wkv7.c`."""

import ctypes

from torch import Tensor

from .compiler import NoKernelError
from .sequences import Inputs

SIZES = tuple(range(8, 257, 8))


def library() -> ctypes.CDLL:
    raise NoKernelError("kernels/wkv7.c is still to come")


def forward(
    inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    raise NoKernelError("kernels/wkv7.c is still to come")


def backward(
    inputs: Inputs, entries: Tensor, cu_seqlens: Tensor | None, d_y: Tensor, d_final: Tensor | None
) -> tuple[Tensor, ...]:
    raise NoKernelError("kernels/wkv7.c is still to come")
