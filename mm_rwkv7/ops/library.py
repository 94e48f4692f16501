"""WKV-7 on compiled kernels as `torch.library` operators, so that autograd, torch.compile and torch.export see them.

B batch, T time, H heads, N head size, S sequences. `mm_rwkv7.ops.backends` says what the arguments are; strides may be
any here.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .backends import backend
from .entries import entry_rows

FORWARD, BACKWARD = "mm_rwkv7::wkv7", "mm_rwkv7::wkv7_backward"


@torch.library.custom_op(FORWARD, mutates_args=())
def wkv7_kernel(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y (B, T, H, N), the last state, and what the backward needs of the states between, if `keep`."""
    inputs = tuple(x.contiguous() for x in (r, log_w, k, v, a, b))
    with torch.autocast(r.device.type, enabled=False):
        return backend(r.device).forward(
            inputs,
            None if state is None else state.contiguous(),
            None if cu_seqlens is None else cu_seqlens.contiguous(),
            keep,
        )


@wkv7_kernel.register_fake
def _(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    state: Tensor | None,
    cu_seqlens: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, H, N = r.shape
    S = None if cu_seqlens is None else cu_seqlens.shape[0] - 1  # `len` would compile anew for every number of them
    entries = entry_rows(B, T, N, S) if keep else 0
    final, kept = log_w.new_empty(B if S is None else S, H, N, N), log_w.new_empty(entries, H, N, N)
    return v.new_empty(v.shape), final, kept


@torch.library.custom_op(BACKWARD, mutates_args=())
def wkv7_kernel_backward(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    entries: Tensor,
    cu_seqlens: Tensor | None,
    d_y: Tensor,
    d_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of r, log_w, k, v, a, b and of the state before the first step."""
    inputs = tuple(x.contiguous() for x in (r, log_w, k, v, a, b))
    with torch.autocast(r.device.type, enabled=False):
        d_r, d_log_w, d_k, d_v, d_a, d_b, d_state = backend(r.device).backward(
            inputs,
            entries.contiguous(),
            None if cu_seqlens is None else cu_seqlens.contiguous(),
            d_y.contiguous(),
            None if d_final is None else d_final.contiguous(),
        )
    return d_r, d_log_w, d_k, d_v, d_a, d_b, d_state


@wkv7_kernel_backward.register_fake
def _(
    r: Tensor,
    log_w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    entries: Tensor,
    cu_seqlens: Tensor | None,
    d_y: Tensor,
    d_final: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    B, _, H, N = r.shape
    d_r, d_log_w, d_k, d_v, d_a, d_b = (x.new_empty(x.shape) for x in (r, log_w, k, v, a, b))
    rows = B if cu_seqlens is None else cu_seqlens.shape[0] - 1
    return d_r, d_log_w, d_k, d_v, d_a, d_b, log_w.new_empty(rows, H, N, N)


def _keep_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    *sequence, state, cu_seqlens, keep = inputs
    if not keep:
        raise RuntimeError(f"{FORWARD} was called without keep=True on inputs that require gradients")
    ctx.set_materialize_grads(False)
    ctx.has_state = state is not None
    ctx.save_for_backward(*sequence, output[2], cu_seqlens)


@partial(wkv7_kernel.register_autograd, setup_context=_keep_for_backward)
def _(ctx: Any, d_y: Tensor | None, d_final: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *sequence, entries, cu_seqlens = ctx.saved_tensors  # read once: a recomputed block gives them only once
    if d_y is None:
        d_y = torch.zeros_like(sequence[3])
    *d_sequence, d_state = wkv7_kernel_backward(*sequence, entries, cu_seqlens, d_y, d_final)
    return *d_sequence, d_state if ctx.has_state else None, None, None
