"""What the hosts of the CUDA kernels share: how tensors are handed over.

B batch, T time, H heads, N head size, S sequences.
"""

import torch
from torch import Tensor

from .entries import entry_rows
from .sequences import Inputs

FORMATS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # INPUT of kernels/wkv7_*


def aligned(x: Tensor) -> Tensor:
    """The same numbers, contiguous, from an address that 16 bytes can be loaded from at once."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def count_sequences(r: Tensor, cu_seqlens: Tensor | None) -> int:
    """S of r (B, ...): B, or as cu_seqlens (S + 1,) says."""
    return len(r) if cu_seqlens is None else len(cu_seqlens) - 1


def forward_results(inputs: Inputs, cu_seqlens: Tensor | None, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Memory for what every forward gives: y (B, T, H, N) in v's dtype, the last states (S, H, N, N) and the entries
    (rows, H, N, N) in fp32, of which there are none unless `keep`."""
    _, log_w, _, v, *_ = inputs
    batch, time, heads, size = v.shape
    sequences = count_sequences(v, cu_seqlens)
    rows = entry_rows(batch, time, size, None if cu_seqlens is None else sequences) if keep else 0
    last, entries = (log_w.new_empty(count, heads, size, size) for count in (sequences, rows))
    return torch.empty_like(v), last, entries
