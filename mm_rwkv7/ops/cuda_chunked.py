"""WKV-7 on a GPU in chunks on tensor cores: `kernels/wkv7_forward.cu` and `kernels/wkv7_backward.cu`.

B batch, T time, H heads, N head size, S sequences (B of them, or as `cu_seqlens` says).
"""

import itertools

import torch
from torch import Tensor

from .cuda_inputs import FORMATS, aligned, count_sequences, forward_results
from .entries import span_of
from .kernel import Kernel, Launcher
from .sequences import Inputs

TENSOR_CORES = (8, 0)  # the first capability with bf16 products and asynchronous copies
SIZES = (64, 128)
FORWARD_CHUNK = 32
BACKWARD_CHUNK = {(64, False): 64, (64, True): 32, (128, False): 32, (128, True): 16}  # by head size, precise or not
SLICE = {(64, False): 64, (64, True): 32, (128, False): 16, (128, True): 16}  # rows of a state in shared memory
VALUES = {64: (64, 32), 128: (128, 64, 32)}  # of a head, in one block of the forward


def supports(inputs: Inputs) -> bool:
    """Whether these inputs can be computed here: N 64 or 128, one dtype beside fp32 log_w."""
    r, log_w, *others = inputs
    alike = all(x.dtype == r.dtype for x in others)
    return r.shape[-1] in SIZES and alike and r.dtype in FORMATS and log_w.dtype == torch.float32


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
    values = _values(size, items, launcher.processors)
    if items:
        arguments = (*inputs, given, cu_seqlens, y, last, entries if keep else None, time, heads)
        launcher(forward_kernel(size, r.dtype, values), (items * (size // values), 1, 1), arguments)
    return y, last, entries


def backward(
    launcher: Launcher, inputs: Inputs, entries: Tensor, cu_seqlens: Tensor | None, d_y: Tensor, d_final: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, log_w, k, v, a, b in their dtypes, and of the first states (S, H, N, N) fp32.

    entries as `forward` kept them; d_y like y; d_final (S, H, N, N) fp32, or none where nothing uses the last states.
    """
    r, log_w, k, v, a, b = (aligned(x) for x in inputs)
    _, time, heads, size = r.shape
    sequences = count_sequences(r, cu_seqlens)
    d_r, d_log_w, d_k, d_v, d_a, d_b = (torch.empty_like(x) for x in (r, log_w, k, v, a, b))
    d_state = log_w.new_empty(sequences, heads, size, size)
    kernel = backward_kernel(size, r.dtype)
    chunks = span_of(size) // BACKWARD_CHUNK[size, r.dtype == torch.float32]
    items = sequences * heads
    blocks = items if chunks == 1 else min(items, 2 * launcher.processors)
    scratch = log_w.new_empty(blocks, chunks - 1, size, size) if chunks > 1 else None
    if items:
        d_final = None if d_final is None else aligned(d_final)
        given = (r, log_w, k, v, a, b, entries, cu_seqlens, aligned(d_y), d_final, scratch)
        found = (d_r, d_log_w, d_k, d_v, d_a, d_b, d_state)
        launcher(kernel, (blocks, 1, 1), (*given, *found, time, heads, items))
    return d_r, d_log_w, d_k, d_v, d_a, d_b, d_state


def all_kernels() -> list[Kernel]:
    """Every kernel that may be launched."""
    forwards = [
        forward_kernel(size, dtype, values)
        for size, dtype in itertools.product(SIZES, FORMATS)
        for values in VALUES[size]
    ]
    return forwards + [backward_kernel(size, dtype) for size, dtype in itertools.product(SIZES, FORMATS)]


def forward_kernel(size: int, dtype: torch.dtype, values: int) -> Kernel:
    """The forward for a head size and an input dtype, whose blocks take that many values of a head each."""
    tile, mix, sums = _shared(size, dtype, FORWARD_CHUNK)
    blocks = 4 if size == 64 and dtype != torch.float32 else 1
    return _kernel("forward", size, dtype, FORWARD_CHUNK, 5 * tile + mix + sums, (("VALUES", values),), blocks)


def backward_kernel(size: int, dtype: torch.dtype) -> Kernel:
    """The backward for a head size and an input dtype."""
    precise = dtype == torch.float32
    chunk, rows = BACKWARD_CHUNK[size, precise], SLICE[size, precise]
    tile, mix, sums = _shared(size, dtype, chunk)
    work = max(mix, 2 * rows * size * (4 if precise else 2) + chunk * size * 4)
    shared = 8 * tile + work + sums + size // 16 * size * 4
    blocks = 2 if size == 64 and not precise else 1
    return _kernel("backward", size, dtype, chunk, shared, (("SLICE", rows),), blocks)


def _kernel(
    name: str, size: int, dtype: torch.dtype, chunk: int, shared: int, more: tuple[tuple[str, int], ...], blocks: int
) -> Kernel:
    defines = (("HEAD_SIZE", size), ("INPUT", FORMATS[dtype]), ("CHUNK", chunk), *more)
    bounds = (("MIN_BLOCKS", blocks), ("SHARED_BYTES", shared))
    return Kernel(f"wkv7_{name}.cu", f"wkv7_{name}", (*defines, *bounds), 2 * size, shared)


def _shared(size: int, dtype: torch.dtype, chunk: int) -> tuple[int, int, int]:
    """Bytes of a (chunk, N) operand, of the mixes of a chunk's blocks of 16 steps, and of sums of log decays."""
    bytes_each = 4 if dtype == torch.float32 else 2  # two bf16 numbers for one in fp32
    blocks = chunk // 16
    return chunk * size * bytes_each, blocks * (blocks + 1) // 2 * 4 * 256 * bytes_each, 6 * size * 4


def _values(size: int, heads: int, processors: int) -> int:
    """How many values of a head a block takes: fewer while that leaves processors without a block."""
    values = size
    while values > min(VALUES[size]) and heads * (size // values) * 2 <= processors:
        values //= 2
    return values
