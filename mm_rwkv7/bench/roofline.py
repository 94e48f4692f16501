"""What a device can do at most, measured in the same run: products and bytes a second."""

import torch

from mm_rwkv7.bench.timing import milliseconds
from mm_rwkv7.ops import linear

SIDE = 2048  # of the matrices
BUFFER = 1 << 28  # bytes, beyond any cache of a CPU
TRIES = 5


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of one large matrix product, the best of a few."""
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    return 2 * SIDE**3 / _best(lambda: linear(a, b), device)


def reading_rate(device: torch.device) -> float:
    """Bytes a second at which memory is read once, the best of a few."""
    buffer = torch.zeros(BUFFER // 4, device=device)
    return BUFFER / _best(buffer.sum, device)


def _best(run: object, device: torch.device) -> float:
    """Seconds of the fastest of a few calls, the first of which does not count."""
    assert callable(run)
    return min([milliseconds(run, device) for _ in range(TRIES + 1)][1:]) / 1000
