"""WKV-7 on a GPU: which of the kernels takes which inputs. `backends.py` says what the arguments are.

B batch, T time, H heads, N head size, S sequences.
"""

from torch import Tensor

from . import cuda_chunked, cuda_recurrent, cuda_scan
from .cuda_inputs import count_sequences
from .kernel import Launcher
from .sequences import Inputs

SIZES = tuple(range(8, 129, 8))


def forward(
    launcher: Launcher, inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Step by step where chunks do not pay or do not run; in pieces at once where one long sequence would leave most of
    the GPU idle and no gradient is wanted; else in chunks."""
    r = inputs[0]
    _, time, heads, _ = r.shape
    if _is_for_steps(launcher, inputs, cu_seqlens):
        return cuda_recurrent.forward(launcher, inputs, state, cu_seqlens, keep)
    sequences = count_sequences(r, cu_seqlens)
    steps = time * len(r)
    length = None if keep else cuda_scan.piece_length(launcher.processors, sequences, heads, steps)
    if length is None:
        return cuda_chunked.forward(launcher, inputs, state, cu_seqlens, keep)
    y, last = cuda_scan.forward(launcher, inputs, state, cu_seqlens, length, cuda_chunked.forward)
    return y, last, last.new_empty(0, *last.shape[1:])


def backward(
    launcher: Launcher, inputs: Inputs, entries: Tensor, cu_seqlens: Tensor | None, d_y: Tensor, d_final: Tensor | None
) -> tuple[Tensor, ...]:
    """By the kernels of the forward: the entries are the same for both."""
    way = cuda_recurrent if _is_for_steps(launcher, inputs, cu_seqlens) else cuda_chunked
    return way.backward(launcher, inputs, entries, cu_seqlens, d_y, d_final)


def _is_for_steps(launcher: Launcher, inputs: Inputs, cu_seqlens: Tensor | None) -> bool:
    steps = inputs[0].shape[1] * len(inputs[0]) // max(1, count_sequences(inputs[0], cu_seqlens))
    old = launcher.capability < cuda_chunked.TENSOR_CORES
    return old or not cuda_chunked.supports(inputs) or cuda_recurrent.is_faster(steps)
