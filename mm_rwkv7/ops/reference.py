"""The definition of WKV-7, one step after another. Every faster path is tested against it.

B batch, T time, H heads, N head size, S sequences.
"""

import torch
from torch import Tensor


def wkv7_step(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """One time step: inputs (B, H, N), state (B, H, N, N) as [value, key]; returns y (B, H, N) and the new state.

    The state decays, forgets what it holds under the key -a, and learns v under k (arXiv 2503.14456, section 3).
    Computed in the precision of `log_w` and `state`, which are the same.
    """
    r, k, v, a, b = (x.to(state.dtype) for x in (r, k, v, a, b))
    removed = state @ a.unsqueeze(-1)  # (B, H, N, 1)
    state = state * log_w.exp().unsqueeze(-2)
    state = state + removed * b.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)
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

    Same arguments and results as `mm_rwkv7.ops.wkv7`.
    """
    batch, time, heads, size = r.shape
    rows = batch if cu_seqlens is None else len(cu_seqlens) - 1
    if state is None:
        state = log_w.new_zeros(rows, heads, size, size)
    state = state.to(log_w.dtype)
    if cu_seqlens is not None:
        ends = cu_seqlens.tolist()
        inputs = (r, log_w, k, v, a, b)
        pieces = [
            wkv7_reference(*(x[:, start:end] for x in inputs), state=state[i : i + 1])
            for i, (start, end) in enumerate(zip(ends, ends[1:], strict=False))
        ]
        return torch.cat([y for y, _ in pieces], dim=1), torch.cat([last for _, last in pieces])

    outputs = []
    with torch.autocast(r.device.type, enabled=False):
        for t in range(time):
            y, state = wkv7_step(r[:, t], log_w[:, t], k[:, t], v[:, t], a[:, t], b[:, t], state)
            outputs.append(y)
    if not outputs:
        return torch.empty_like(v), state
    return torch.stack(outputs, dim=1).to(v.dtype), state
