"""Matrix products of a model that only reads, and what lies between two of them.

On a CPU torch multiplies fp32 matrices with MKL, which on processors that are not Intel's leaves AVX-512 unused; oneDNN
is twice as fast there.
"""

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., n), weight (m, n) in any strides -> x weight^T (..., m), differentiable."""
    if _is_for_onednn(x, weight):
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return found
    return F.linear(x, weight)


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2. Without gradients it takes x's own memory, which must be the caller's to give: fresh memory of that
    size costs more than the arithmetic."""
    if torch.is_grad_enabled() and x.requires_grad:
        k = torch.relu(x)
        return k * k
    return x.relu_().square_()


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )
