"""WKV-7 on a CPU by the C kernel `kernels/wkv7.c`; `backends.Backend` says what comes in and out.

B batch, T time, H heads, N head size, S sequences.
"""

import ctypes
import functools

import torch
from torch import Tensor

from .compiler import load
from .entries import entry_rows, span_of
from .sequences import Inputs

SIZES = tuple(range(8, 257, 8))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # by their numbers in the C file
NO_MEMORY, BAD_ENDS = 1, 2


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled kernel. NoKernelError where it cannot be built."""
    built = load("wkv7")
    built.wkv7_forward.argtypes = [ctypes.c_int] * 9 + [ctypes.c_void_p] * 11
    built.wkv7_backward.argtypes = [ctypes.c_int] * 8 + [ctypes.c_void_p] * 17
    return built


def forward(
    inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, H, N), the last state (B or S, H, N, N), and the entries if they are to be kept."""
    r, log_w, k, v, a, b = inputs
    B, T, H, N = r.shape
    sequences = B if cu_seqlens is None else len(cu_seqlens) - 1
    _require((r, k, v, a, b), v.dtype, r.shape)
    _require((log_w,), torch.float32, r.shape)
    _require((state,), torch.float32, (sequences, H, N, N))
    _require((cu_seqlens,), torch.int32, (sequences + 1,))
    y = torch.empty_like(v)
    last = log_w.new_empty(sequences, H, N, N)
    rows = entry_rows(B, T, N, None if cu_seqlens is None else sequences) if keep else 0
    entries = log_w.new_empty(rows, H, N, N)
    sizes = (B, T, H, N, sequences, span_of(N), DTYPES.index(v.dtype), torch.get_num_threads(), keep)
    given, made = (cu_seqlens, r, log_w, k, v, a, b, state), (y, last, entries)
    _check(library().wkv7_forward(*sizes, *map(_pointer, given), *map(_pointer, made)), cu_seqlens, T)
    return y, last, entries


def backward(
    inputs: Inputs, entries: Tensor, cu_seqlens: Tensor | None, d_y: Tensor, d_final: Tensor | None
) -> tuple[Tensor, ...]:
    """Gradients of r, log_w, k, v, a, b and of the state before the first step."""
    r, log_w, k, v, a, b = inputs
    B, T, H, N = r.shape
    sequences = B if cu_seqlens is None else len(cu_seqlens) - 1
    rows = entry_rows(B, T, N, None if cu_seqlens is None else sequences)
    _require((r, k, v, a, b, d_y), v.dtype, r.shape)
    _require((log_w,), torch.float32, r.shape)
    _require((entries,), torch.float32, (rows, H, N, N))
    _require((d_final,), torch.float32, (sequences, H, N, N))
    _require((cu_seqlens,), torch.int32, (sequences + 1,))
    d_inputs = [torch.empty_like(x) for x in inputs]
    d_state = entries.new_empty(sequences, H, N, N)
    sizes = (B, T, H, N, sequences, span_of(N), DTYPES.index(d_y.dtype), torch.get_num_threads())
    given, made = (cu_seqlens, *inputs, entries, d_y, d_final), (*d_inputs, d_state)
    _check(library().wkv7_backward(*sizes, *map(_pointer, given), *map(_pointer, made)), cu_seqlens, T)
    return *d_inputs, d_state


def _require(tensors: tuple[Tensor | None, ...], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """The kernel would read beyond the end of anything else, and the operators can be called with anything."""
    for x in tensors:
        if x is not None and (x.dtype != dtype or x.shape != shape):
            raise ValueError(f"wkv7: a tensor is {x.dtype} {tuple(x.shape)}, expected {dtype} {tuple(shape)}")


def _pointer(x: Tensor | None) -> int | None:
    return None if x is None else x.data_ptr()


def _check(code: int, cu_seqlens: Tensor | None, time: int) -> None:
    if code == NO_MEMORY:
        raise MemoryError("wkv7: no memory for the kernel to work in")
    if code == BAD_ENDS and cu_seqlens is not None:
        raise ValueError(f"wkv7: cu_seqlens is {cu_seqlens.tolist()}, expected it to rise from 0 to T = {time}")
