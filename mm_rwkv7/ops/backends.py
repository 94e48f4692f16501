"""Which kernels compute WKV-7 on a device, and why, where none can.

B batch, T time, H heads, N head size, S sequences; `entries` is said in `entries.py`.
"""

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .compiler import NoKernelError
from .sequences import Inputs

HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Backend:
    """Compiled kernels for one device.

    inputs: r, log_w, k, v, a, b, contiguous (B, T, H, N); log_w fp32, the others of one dtype, fp32, bf16 or fp16.
    state: (B or S, H, N, N) fp32 as [value, key], or None; cu_seqlens: (S + 1,) int32 on the device, or None.
    forward(inputs, state, cu_seqlens, keep) -> y in v's dtype, the last state, and the entries that the backward
    needs, which are empty unless `keep`.
    backward(inputs, entries, cu_seqlens, d_y, d_final) -> gradients of the inputs in their dtypes and of the state in
    fp32; d_y in v's dtype, d_final fp32 or None.
    """

    name: str
    forward: Callable[[Inputs, Tensor | None, Tensor | None, bool], tuple[Tensor, Tensor, Tensor]]
    backward: Callable[[Inputs, Tensor, Tensor | None, Tensor, Tensor | None], tuple[Tensor, ...]]
    sizes: tuple[int, ...]  # head sizes


def backend(device: torch.device) -> Backend:
    """The kernels for a device, built when they are first asked for; NoKernelError says why there are none."""
    found = _found(device)
    if isinstance(found, str):
        raise NoKernelError(found)
    return found


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def reason_against(device: torch.device, dtype: torch.dtype, size: int) -> str | None:
    """Why inputs of a dtype and head size cannot go to compiled kernels; None where they can."""
    if dtype not in (torch.float32, *HALF):
        return f"{dtype} is computed by torch alone"
    found = _found(device)
    if isinstance(found, str):
        return found
    if size not in found.sizes:
        return f"there is no {found.name} kernel for head size {size}"
    return None


@functools.cache
def _found(device: torch.device) -> Backend | str:
    """A backend, or the reason why there is none. Looked for once."""
    try:
        if device.type == "cpu":
            return _native()
        if device.type == "cuda":
            return _cuda(device)
    except NoKernelError as error:
        if device.type == "cuda":
            warnings.warn(f"WKV-7 runs on plain PyTorch: {error}", stacklevel=2)
        return str(error)
    return f"there is no kernel for devices of type {device.type}"


def _native() -> Backend:
    from . import native

    native.library()
    return Backend("native", native.forward, native.backward, native.SIZES)


def _cuda(device: torch.device) -> Backend:
    try:
        from . import cuda
        from .driver import launcher
    except ImportError as error:
        raise NoKernelError(f"the CUDA kernels cannot be launched: {error}") from error
    launch = launcher(device)
    forward, backward = functools.partial(cuda.forward, launch), functools.partial(cuda.backward, launch)
    return Backend("cuda", forward, backward, cuda.SIZES)
