"""What the hosts of the CUDA kernels share: how tensors are handed over.

B batch, S sequences.
"""

import torch
from torch import Tensor

FORMATS = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}  # INPUT of kernels/wkv7_*


def aligned(x: Tensor) -> Tensor:
    """The same numbers, contiguous, from an address that 16 bytes can be loaded from at once."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def count_sequences(r: Tensor, cu_seqlens: Tensor | None) -> int:
    """S of r (B, ...): B, or as cu_seqlens (S + 1,) says."""
    return len(r) if cu_seqlens is None else len(cu_seqlens) - 1
