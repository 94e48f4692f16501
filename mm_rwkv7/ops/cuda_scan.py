"""One long sequence on a whole GPU: `kernels/wkv7_scan.cu` and the ordinary forward, for prefill.

A sequence's heads alone do not fill a GPU. So the sequence is cut into pieces of some hundred steps: pass 1 finds for
all of them at once what they make of a state, S_out = S_in M + D; pass 2 goes through these maps and finds the state
before each piece; pass 3 is the ordinary forward over the pieces, as sequences with these states.

B batch, T time, H heads, N head size, S sequences, P pieces.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .cuda_inputs import FORMATS, aligned
from .kernel import Kernel, Launcher
from .sequences import Inputs

# A backend's forward: (launcher, inputs, state, cu_seqlens, keep) -> (y, final, entries).
Forward = Callable[[Launcher, Inputs, Tensor | None, Tensor | None, bool], tuple[Tensor, Tensor, Tensor]]

SOURCE = "wkv7_scan.cu"
CHUNK = 16  # steps
UNIT = 32  # steps that `piece_length` counts as one
LENGTHS = (1024, 512, 256)  # steps of a piece


def supports(launcher: Launcher, inputs: Inputs) -> bool:
    """Whether these inputs can be computed here: sm_80 or later, head sizes 16 to 128 in steps of 16, one dtype."""
    r, log_w, k, v, a, b = inputs
    size = r.shape[-1]
    alike = all(x.dtype == r.dtype for x in (k, v, a, b))
    fits = size % 16 == 0 and 16 <= size <= 128 and launcher.capability >= (8, 0)
    return fits and alike and r.dtype in FORMATS and log_w.dtype == torch.float32


def piece_length(processors: int, sequences: int, heads: int, time: int) -> int | None:
    """Steps of a piece with which this beats the plain chunked forward by count, or None where it does not.

    time: steps of all sequences together. The unit of the count is 32 steps in one block: a chunk of the plain forward,
    two chunks of pass 1. Its stages wait for one another, so that it takes about the same time in both, and a
    processor with one block is mostly idle. For S * H heads on that many processors:

    plain: a chain of T / S / 32, in as many rounds as it takes for S * H blocks. (Splitting values over blocks fills
    idle processors, but shortens no chain.)

    scan: passes 1 and 3 are chains of length / 32, in as many rounds as it takes for S * H * T / S / length blocks.
    Pass 2 is a chain of T / S / length products (N x N in fp32), each about one unit as well.

    Bytes: 12 an element in pass 1 and 16 in pass 3 (bf16 inputs) where the plain forward moves 16, and
    24 * N / length more for M, D and the entry states: about twice the plain traffic. FLOPs: pass 1 does about as many
    as the plain forward. So a quarter must be won in the count.

    On 132 processors a sequence of 4,096 steps gains at 12 heads (plain 128, scan 40) and at 32 (128, 68), not at 64
    (128, 132); a sequence of 1,024 gains at 12 and at 32 heads (32, 20), not at 64 (32, 36).
    """
    chain = -(-time // sequences)

    def count(length: int) -> int:
        pieces = -(-chain // length)
        rounds = -(-sequences * heads * pieces // processors)
        return 2 * rounds * length // UNIT + pieces

    plain = -(-sequences * heads // processors) * -(-chain // UNIT)
    best = min(LENGTHS, key=count)
    return best if 4 * count(best) <= 3 * plain else None


def forward(
    launcher: Launcher, inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor | None, length: int, plain: Forward
) -> tuple[Tensor, Tensor]:
    """y (B, T, H, N) in v's dtype and the last states (S, H, N, N), by pieces of `length` steps.

    inputs, state and cu_seqlens as the backends take them. plain: the forward for pass 3.
    """
    batch, time, heads, size = inputs[0].shape
    sequences = batch if cu_seqlens is None else len(cu_seqlens) - 1
    row = tuple(aligned(x).view(1, batch * time, heads, size) for x in inputs)
    pieces = batch * time // length + sequences
    starts, first, last = (row[0].new_empty(n, dtype=torch.int32) for n in (pieces + 1, sequences + 1, sequences))
    launcher(_pieces_kernel(size), (sequences, 1, 1), (cu_seqlens, starts, first, last, time, sequences, length))
    m, d = affine(launcher, row, starts)
    entries = entry_states(launcher, m, d, state, first)
    y, finals, _ = plain(launcher, row, entries, starts, False)
    return y.view(batch, time, heads, size), finals.index_select(0, last)


def affine(launcher: Launcher, inputs: Inputs, cu_seqlens: Tensor | None) -> tuple[Tensor, Tensor]:
    """Pass 1: M and D (P, H, N, N) in fp32, so that each sequence P takes a state S to S M + D.

    inputs: r (not used), log_w, k, v, a, b (B, T, H, N); cu_seqlens (P + 1,) int32 for B = 1, or none: then P = B.
    M has [key before, key after], D [value, key]. The identity and zeros for an empty sequence.
    """
    _, *used = (aligned(x) for x in inputs)
    log_w, k, v, a, b = used
    batch, time, heads, size = k.shape
    pieces = batch if cu_seqlens is None else len(cu_seqlens) - 1
    m, d = (log_w.new_empty(pieces, heads, size, size) for _ in range(2))
    launcher(
        _affine_kernel(size, k.dtype),
        (pieces * heads, _parts(size), 1),
        (log_w, k, v, a, b, cu_seqlens, m, d, time, heads),
    )
    return m, d


def entry_states(launcher: Launcher, m: Tensor, d: Tensor, state: Tensor | None, first: Tensor) -> Tensor:
    """Pass 2: the state before each piece (P, H, N, N).

    first (S + 1,) int32: pieces first[s] to first[s + 1] - 1 follow one another, from state[s] (zeros when None).
    """
    _, heads, size, _ = m.shape
    entries = torch.empty_like(d)
    grid = ((len(first) - 1) * heads, size // 16, 1)
    launcher(_combine_kernel(size), grid, (m, d, None if state is None else state.contiguous(), first, entries, heads))
    return entries


def all_kernels() -> Iterator[Kernel]:
    """Every kernel that may be launched for a head size of 64 or 128."""
    for size in (64, 128):
        yield _pieces_kernel(size)
        yield _combine_kernel(size)
        for dtype in FORMATS:
            yield _affine_kernel(size, dtype)


def _defines(size: int, dtype: torch.dtype) -> tuple[tuple[str, int | str], ...]:
    return (("HEAD_SIZE", size), ("INPUT", FORMATS[dtype]))


def _parts(size: int) -> int:
    """Blocks that share the rows of M and D."""
    return 1 if size <= 64 else 2


def _pieces_kernel(size: int) -> Kernel:
    return Kernel(SOURCE, "wkv7_pieces", _defines(size, torch.float32), 32)


def _affine_kernel(size: int, dtype: torch.dtype) -> Kernel:
    chunks, terms = 2 if size <= 64 else 1, 2 if dtype == torch.float32 else 1
    columns = 6 * terms * size * (CHUNK + 8) * 2
    shared = chunks * (columns + 2 * CHUNK * CHUNK * 4 + size * 4)
    return Kernel(SOURCE, "wkv7_affine", _defines(size, dtype), 4 * size // _parts(size), shared)


def _combine_kernel(size: int) -> Kernel:
    return Kernel(SOURCE, "wkv7_combine", _defines(size, torch.float32), 4 * size)
