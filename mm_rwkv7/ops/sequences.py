"""Several sequences in one row, one after another.

T time, H heads, N head size, S sequences.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]  # r, log_w, k, v, a, b
Scan = Callable[[Inputs, Tensor | None], tuple[Tensor, Tensor]]


def scan_each(scan: Scan, inputs: Inputs, state: Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """Runs `scan` on every sequence apart: inputs (1, T, H, N), cu_seqlens (S + 1,), state (S, H, N, N) or none.

    Returns y (1, T, H, N) and the states after the sequences (S, H, N, N).
    """
    pieces = [
        scan(tuple(x[:, start:end] for x in inputs), None if state is None else state[i : i + 1])
        for i, (start, end) in enumerate(pairwise(cu_seqlens.tolist()))
    ]
    return torch.cat([y for y, _ in pieces], dim=1), torch.cat([last for _, last in pieces])
