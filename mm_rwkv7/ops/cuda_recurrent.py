"""WKV-7 step by step in fp32 on a GPU: `kernels/wkv7_recurrent_forward.cu` and `..._backward.cu`.

The path of chips without bf16 tensor cores (before sm_80), of head sizes that the chunked kernels lack, and of few
steps on any chip (`is_faster`).

B batch, T time, H heads, N head size, S sequences.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from .cuda_inputs import FORMATS, aligned, count_sequences, forward_results
from .entries import span_of
from .kernel import Kernel, Launcher
from .sequences import Inputs

KEYS = 8  # of a row, in one thread
TILE = 8  # steps in shared memory at a time; the backward keeps a state after each


def supports(inputs: Inputs) -> bool:
    """Whether these inputs can be computed here: a head size that is a multiple of 8, up to 128, and one dtype for all
    but log_w."""
    r, log_w, k, v, a, b = inputs
    size = r.shape[-1]
    alike = all(x.dtype == r.dtype for x in (k, v, a, b))
    return size % 8 == 0 and 8 <= size <= 128 and alike and r.dtype in FORMATS and log_w.dtype == torch.float32


def is_faster(steps: int) -> bool:
    """Whether this beats the chunked kernels, by count, on chips that have those.

    A chunk of 32 steps costs the same whether it is full or not: some six stages one after another (factors, products
    of blocks of 16 steps, substitution, merging, output, state) of 300 to 500 cycles each. A step here is one product,
    three shuffles and an update, 150 to 200 cycles with few heads. So up to some 8 steps the way is
    shorter here, and no padded step is computed; from 16 on it is shorter in chunks.
    """
    return steps <= 8


def forward(
    launcher: Launcher, inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, H, N) in v's dtype, the last states (S, H, N, N), and the entries (rows, H, N, N), none unless `keep`.

    inputs: r, log_w, k, v, a, b (B, T, H, N) that `supports` accepts; state (S, H, N, N) fp32 or none; cu_seqlens
    (S + 1,) int32 on the inputs' device, for B = 1, or none: then S = B.
    """
    inputs = tuple(aligned(x) for x in inputs)
    r = inputs[0]
    _, time, heads, size = r.shape
    y, last, entries = forward_results(inputs, cu_seqlens, keep)
    given = None if state is None else aligned(state)
    items = len(last) * heads
    kernel, parts = _forward_kernel(size, r.dtype, items, launcher.processors)
    if items:
        arguments = (*inputs, given, cu_seqlens, y, last, entries if keep else None, time, heads)
        launcher(kernel, (items, parts, 1), arguments)
    return y, last, entries


def backward(
    launcher: Launcher,
    inputs: Inputs,
    entries: Tensor,
    cu_seqlens: Tensor | None,
    d_y: Tensor,
    d_final: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of the six inputs, in their dtypes, and of the first states (S, H, N, N) in fp32.

    entries as `forward` kept them; d_y (B, T, H, N) in v's dtype; d_final (S, H, N, N) fp32, or none.
    """
    inputs = tuple(aligned(x) for x in inputs)
    r, log_w, *_ = inputs
    _, time, heads, size = r.shape
    sequences = count_sequences(r, cu_seqlens)
    gradients = tuple(torch.empty_like(x) for x in inputs)
    d_state = log_w.new_empty(sequences, heads, size, size)
    items = sequences * heads
    kernel, rows = _backward_kernel(size, r.dtype, items, launcher.processors)
    blocks = min(items, launcher.processors * max(1, 256 // kernel.threads))  # 256 threads take all registers
    kept = span_of(size) // TILE * rows * KEYS * kernel.threads
    scratch = log_w.new_empty(blocks * (kept + span_of(size) * size))
    last = None if d_final is None else aligned(d_final)
    arguments = (*inputs, aligned(entries), cu_seqlens, aligned(d_y), last, *gradients, d_state, scratch)
    if items:
        launcher(kernel, (blocks, 1, 1), (*arguments, time, heads, items))
    return *gradients, d_state


def all_kernels() -> Iterator[Kernel]:
    """Every kernel that may be launched for a head size of 64 or 128."""
    for size in (64, 128):
        for dtype in FORMATS:
            for heads in (1, 1 << 20):  # few and many
                yield _forward_kernel(size, dtype, heads, 1024)[0]
                yield _backward_kernel(size, dtype, heads, 1024)[0]


def _lanes(size: int) -> int:
    """Threads that hold a row together: a power of two."""
    return 1 << (size // KEYS - 1).bit_length()


def _threads(size: int, rows: int) -> int:
    """Threads that hold a head, in whole warps."""
    return -(-_lanes(size) * (size // rows) // 32) * 32


def _kernel(direction: str, size: int, dtype: torch.dtype, rows: int, threads: int, shared: int = 0) -> Kernel:
    defines = (("HEAD_SIZE", size), ("INPUT", FORMATS[dtype]), ("ROWS", rows), ("THREADS", threads))
    name = f"wkv7_recurrent_{direction}"
    return Kernel(f"{name}.cu", name, (*defines, ("SPAN", span_of(size))), threads, shared)


def _forward_kernel(size: int, dtype: torch.dtype, heads: int, processors: int) -> tuple[Kernel, int]:
    """The kernel for a number of (sequence, head) pairs, and into how many blocks it splits the rows of each.

    With enough heads a thread takes 8 rows, so that few loads and shuffles serve many products; with few it takes 2,
    and a step is over sooner.
    """
    rows = 8 if heads >= processors else 2
    threads = min(128, _threads(size, rows))
    parts = -(-_threads(size, rows) // threads)
    return _kernel("forward", size, dtype, rows, threads), parts


def _backward_kernel(size: int, dtype: torch.dtype, heads: int, processors: int) -> tuple[Kernel, int]:
    """The kernel, and how many rows a thread of it takes: fewer where there are few heads, and registers allow it."""
    rows = 8 if heads >= 2 * processors or size > 64 else 4
    threads = _threads(size, rows)
    shared = 4 * (8 * TILE * _lanes(size) * KEYS + threads // 32 * 5 * KEYS * _lanes(size))
    return _kernel("backward", size, dtype, rows, threads, shared), rows
