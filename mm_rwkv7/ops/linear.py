"""Matrix products of a model that only reads: oneDNN's on a CPU in fp32.

torch multiplies fp32 matrices with MKL, which on processors that are not Intel's leaves AVX-512 unused: half the speed.
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


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        x.device.type == weight.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not (torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad))
        and not torch.is_autocast_enabled("cpu")
        and torch.backends.mkldnn.is_available()
    )
