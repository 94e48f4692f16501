"""What a device can do at most: products and bytes a second, measured in the same run, or as its maker says."""

import re

import torch

from mm_rwkv7.bench.timing import milliseconds
from mm_rwkv7.ops import linear

SIDE = 2048  # of the matrices
BUFFER = 1 << 28  # bytes
TRIES = 5

# Dense products in bf16, floating-point operations a second, as NVIDIA's data sheets state them (without sparsity).
PEAKS = {
    "A100": 312e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 5090": 210e12,
}


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of one large matrix product, the best of a few."""
    a, b = torch.randn(2, SIDE, SIDE, device=device).to(dtype)
    return 2 * SIDE**3 / _best(lambda: linear(a, b), device)


def device_peak(device: torch.device) -> float | None:
    """Operations a second that `device` is made for, where that is known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for known, peak in PEAKS.items() if re.search(rf"\b{known}\b", name)), None)


def reading_rate(memory: torch.Tensor) -> float:
    """Bytes a second at which this memory is read once, the best of a few."""
    return memory.nbytes / _best(memory.sum, memory.device)


def large_buffer(device: torch.device) -> torch.Tensor:
    """Memory to be read, beyond any cache of a CPU."""
    return torch.ones(BUFFER // 4, device=device)


def _best(run: object, device: torch.device) -> float:
    """Seconds of the fastest of a few calls, the first of which does not count."""
    assert callable(run)
    return min([milliseconds(run, device) for _ in range(TRIES + 1)][1:]) / 1000
