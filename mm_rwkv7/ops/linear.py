"""Matrix products, and what lies between two of them.

On a CPU torch multiplies fp32 matrices with MKL, which on processors that are not Intel's leaves AVX-512 unused; oneDNN
is twice as fast there.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x (..., n), weight (m, n) in any strides -> x weight^T (..., m), differentiable."""
    if not _is_for_onednn(x, weight):
        return F.linear(x, weight)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        found: Tensor = _Product.apply(x, weight)
        return found
    return _product(x, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _product(x, weight)

    @staticmethod
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        d_x = linear(d_y, weight.mT) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return d_x, None
        return d_x, linear(d_y.reshape(-1, len(weight)).mT, x.reshape(-1, x.shape[-1]).mT)


def _product(x: Tensor, weight: Tensor) -> Tensor:
    found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return found


def squared_relu(x: Tensor) -> Tensor:
    """max(x, 0)^2. Without gradients it takes x's own memory, which must be the caller's to give: fresh memory of that
    size costs more than the arithmetic."""
    if torch.is_grad_enabled() and x.requires_grad:
        k = torch.relu(x)
        return k * k
    return x.relu_().square_()


def _is_for_onednn(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN can multiply them, and nobody traces, transforms or derives in another way what it does not
    record."""
    return (
        x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.numel() > 0 < weight.numel()
        and x.shape[-1] == weight.shape[-1]
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch.autograd.forward_ad._current_level < 0
        and torch.backends.mkldnn.is_available()
    )
