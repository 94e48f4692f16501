"""The definition of WKV-7, one step after another. Every faster path is tested against it.

B batch, T time, H heads, N head size.
"""

import torch
from torch import Tensor

from .sequences import Inputs, scan_each


def wkv7_step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One time step: inputs (B, H, N), state (B, H, N, N) as [value, key]; returns y (B, H, N) and the new state.

    The state decays, forgets what it holds under the key -a, and learns v under k (arXiv 2503.14456, section 3).
    Computed in the precision of `log_w` and `state`, which are the same.
    """
    r, k, v, a, b = (x.to(state.dtype) for x in (r, k, v, a, b))
    removed = state @ a.unsqueeze(-1)  # (B, H, N, 1)
    state = state * log_w.exp().unsqueeze(-2) + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
    return (state @ r.unsqueeze(-1)).squeeze(-1), state


def wkv7_reference(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """`wkv7` as a loop over time, in the precision of `log_w` (fp32 or fp64), differentiable by autograd.

    Same arguments and results as `mm_rwkv7.ops.wkv7`; nothing is checked.
    """
    inputs = (r, log_w, k, v, a, b)
    with torch.autocast(r.device.type, enabled=False):
        if cu_seqlens is not None:
            return scan_each(_scan, inputs, state, cu_seqlens)
        return _scan(inputs, state)


def _scan(inputs: Inputs, state: Tensor | None) -> tuple[Tensor, Tensor]:
    r, log_w, k, v, a, b = inputs
    batch, time, heads, size = r.shape
    state = log_w.new_zeros(batch, heads, size, size) if state is None else state.to(log_w.dtype)
    outputs = []
    for t in range(time):
        y, state = wkv7_step(r[:, t], log_w[:, t], k[:, t], v[:, t], a[:, t], b[:, t], state)
        outputs.append(y)
    if not outputs:
        return torch.empty_like(v), state
    return torch.stack(outputs, dim=1).to(v.dtype), state
