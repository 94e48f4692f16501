"""One door to the recurrence: checks what comes in, then takes the fastest path for it.

B batch, T time, H heads, N head size, S sequences.
"""

import torch
from torch import Tensor

from .chunked import wkv7_chunked
from .reference import wkv7_step


def wkv7(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The WKV-7 recurrence: S_t = S_{t-1} diag(exp(log_w_t)) + (S_{t-1} a_t) b_t^T + v_t k_t^T,  y_t = S_t r_t.

    r, log_w, k, v, a, b: (B, T, H, N). log_w lies in [-exp(-0.5), 0] and is fp32 (or fp64, for tests), which is also the
    precision of the computation; the others may be bf16 or fp16. The range is the caller's duty: looking at it would wait
    for the device. A step with log_w, k and b zero leaves the state as it was.
    state: (B, H, N, N) as [value, key], the state before the first step; zeros when None.
    cu_seqlens: (S + 1,) integers from 0 to T: B is 1, S sequences lie one after another, any of them may be empty, and the
    states are (S, H, N, N).

    Returns y (B, T, H, N) in v's dtype and the state after the last step in log_w's, never the caller's tensor.
    Differentiable in everything, the state included. ValueError on shapes and dtypes that do not fit.
    Source: arXiv 2503.14456, section 3; a = -kappa, b = kappa * iclr.
    """
    inputs = (r, log_w, k, v, a, b)
    _check(inputs, state, cu_seqlens)
    if cu_seqlens is not None:
        return _sequences(inputs, state, cu_seqlens)
    if r.numel() == 0:
        return torch.empty_like(v), _initial(log_w, len(r)) if state is None else state.clone()
    if r.shape[1] == 1 and not torch.is_grad_enabled():
        return _one_step(inputs, state)
    return wkv7_chunked(*inputs, state=state)


def wkv_path(device: torch.device | str) -> str:
    """The name of the path that sequences take on a device."""
    return f"torch-chunked ({torch.device(device).type})"


def _initial(log_w: Tensor, rows: int) -> Tensor:
    heads, size = log_w.shape[2:]
    return log_w.new_zeros(rows, heads, size, size)


def _one_step(inputs: tuple[Tensor, ...], state: Tensor | None) -> tuple[Tensor, Tensor]:
    r, log_w, _, v, _, _ = inputs
    state = _initial(log_w, len(r)) if state is None else state.to(log_w.dtype)
    with torch.autocast(r.device.type, enabled=False):
        y, state = wkv7_step(*(x[:, 0] for x in inputs), state)
    return y.unsqueeze(1).to(v.dtype), state


def _sequences(inputs: tuple[Tensor, ...], state: Tensor | None, cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    ends = cu_seqlens.tolist()
    pieces = [
        wkv7(*(x[:, start:end] for x in inputs), state=None if state is None else state[i : i + 1])
        for i, (start, end) in enumerate(zip(ends, ends[1:], strict=False))
    ]
    return torch.cat([y for y, _ in pieces], dim=1), torch.cat([last for _, last in pieces])


def _check(inputs: tuple[Tensor, ...], state: Tensor | None, cu_seqlens: Tensor | None) -> None:
    r, log_w = inputs[:2]
    if r.dim() != 4:
        raise ValueError(f"wkv7: r has shape {tuple(r.shape)}, expected (B, T, H, N)")
    for name, x in zip(("r", "log_w", "k", "v", "a", "b"), inputs, strict=True):
        if x.shape != r.shape:
            raise ValueError(f"wkv7: {name} has shape {tuple(x.shape)}, expected {tuple(r.shape)} as r has")
        if x.dtype not in (torch.float32, torch.bfloat16, torch.float16, log_w.dtype):
            raise ValueError(f"wkv7: {name} is {x.dtype}, expected fp32, bf16 or fp16 (log_w is {log_w.dtype})")
    if log_w.dtype not in (torch.float32, torch.float64):
        raise ValueError(f"wkv7: log_w is {log_w.dtype}, expected float32: rounding it changes slow decays")
    rows, time, heads, size = r.shape
    if cu_seqlens is not None:
        rows = len(cu_seqlens) - 1
        _check_lengths(cu_seqlens, r)
    if state is None:
        return
    if state.shape != (rows, heads, size, size):
        raise ValueError(
            f"wkv7: state has shape {tuple(state.shape)}, expected {(rows, heads, size, size)} (value, key)"
        )
    if state.dtype not in (torch.float32, log_w.dtype):
        raise ValueError(f"wkv7: state is {state.dtype}, expected float32")


def _check_lengths(cu_seqlens: Tensor, r: Tensor) -> None:
    if len(r) != 1:
        raise ValueError(f"wkv7: cu_seqlens was given with B = {len(r)}, expected B = 1")
    ends = cu_seqlens.tolist()
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != r.shape[1] or ends != sorted(ends):
        raise ValueError(f"wkv7: cu_seqlens is {ends}, expected a rise from 0 to T = {r.shape[1]}")
