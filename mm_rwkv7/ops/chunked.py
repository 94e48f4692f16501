"""WKV-7 a chunk at a time: matrix products inside a chunk, the recurrence only from chunk to chunk.

B batch, T time, H heads, N head size, C steps in a chunk, G = B * H.

Write P_t for the product of the decays of a chunk up to and including step t. Dividing what is written at step t by P_t
and multiplying what is read there by P_t turns decay within the chunk into plain sums, so with

    left  = [-a_t P_{t-1} ; r_t P_t]      what is read at each step    (2C, N)
    right = [ b_t / P_t   ; k_t / P_t]    where it is written          (2C, N)
    values = [u_t ; v_t]                  what is written              (2C, N),  u_t = S_{t-1} a_t

and mix = left right^T, cut to the steps that came before (a) or up to now (r), a chunk entered with state S is

    (I + mix_ab) u = -(left_a S^T + mix_ak v)        solved by substitution: a series explodes on repeated keys
    y  = left_r S^T + mix_r values
    S' = (S + values^T right) diag(P_C)

P_t never falls under exp(-exp(-0.5) * 64) = 1e-17, so fp32 holds every factor. The backward is written out: it keeps
the inputs and the state between chunks, and recomputes the rest.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK = 64
BLOCK_ELEMENTS = 1 << 16  # of one (B, H, C, N) factor: rows of a batch are taken a few at a time, to stay in the cache


@dataclass(frozen=True)
class _Chunk:
    decay: Tensor  # (B, H, C, N) P_t
    decay_before: Tensor  # (B, H, C, N) P_{t-1}
    left: Tensor  # (G, 2C, N)
    right: Tensor  # (G, 2C, N)
    values: Tensor  # (G, 2C, N)
    mix: Tensor  # (G, 2C, 2C)
    solve: Tensor  # (G, C, C) -(I + mix_ab)^-1


def _cut_to_past(mix: Tensor) -> Tensor:
    """Zeroes, in place, what a step of a chunk may not see: mix (G, 2C, 2C), rows a then r."""
    rows, steps = len(mix), mix.shape[-1] // 2
    blocks = mix.view(rows, 2, steps, 2, steps).transpose(2, 3)
    blocks[:, 0].tril_(-1)
    blocks[:, 1].tril_()
    return mix


def _open_chunk(inputs: list[Tensor], entry: Tensor | None) -> _Chunk:
    """Everything forward and backward share: inputs (B, H, C, N) in any strides, entry state (G, N, N) or none."""
    r, log_w, k, v, a, b = inputs
    batch, heads, steps, size = r.shape
    exact = {"dtype": log_w.dtype, "device": log_w.device}
    log_decay = torch.matmul(torch.ones(steps, steps, **exact).tril_(), log_w)
    decay_before = (log_decay - log_w).exp_()
    decay = log_decay.exp_()

    left, right, values = torch.empty(3, batch, heads, 2 * steps, size, **exact)
    torch.mul(a, decay_before, out=left[..., :steps, :]).neg_()
    torch.mul(r, decay, out=left[..., steps:, :])
    torch.div(b, decay, out=right[..., :steps, :])
    torch.div(k, decay, out=right[..., steps:, :])
    values[..., steps:, :] = v
    left, right, values = left.flatten(0, 1), right.flatten(0, 1), values.flatten(0, 1)

    mix = _cut_to_past(torch.bmm(left, right.mT))
    minus_identity = -torch.eye(steps, **exact).expand(len(mix), steps, steps)
    solve = torch.linalg.solve_triangular(mix[:, :steps, :steps], minus_identity, upper=False, unitriangular=True)
    known = torch.bmm(mix[:, :steps, steps:], values[:, steps:])
    if entry is not None:
        known.baddbmm_(left[:, :steps], entry.mT)
    values[:, :steps] = torch.bmm(solve, known)
    return _Chunk(decay, decay_before, left, right, values, mix, solve)


def _chunk_forward(inputs: list[Tensor], entry: Tensor | None, exit: Tensor) -> Tensor:
    """Returns y (G, C, N) and writes the state after the chunk into `exit` (G, N, N), which may be `entry` itself."""
    chunk = _open_chunk(inputs, entry)
    steps = chunk.decay.shape[2]
    y = torch.bmm(chunk.mix[:, steps:], chunk.values)
    if entry is None:
        torch.bmm(chunk.values.mT, chunk.right, out=exit)
    else:
        y.baddbmm_(chunk.left[:, steps:], entry.mT)
        torch.baddbmm(entry, chunk.values.mT, chunk.right, out=exit)
    exit.mul_(chunk.decay[:, :, -1:].flatten(0, 1))
    return y


def _chunk_backward(
    inputs: list[Tensor],
    entry: Tensor | None,
    exit: Tensor,
    d_y: Tensor | None,
    d_exit: Tensor | None,
    d_inputs: list[Tensor],
    wants_d_entry: bool,
) -> Tensor | None:
    """Writes the gradients of one chunk's inputs into `d_inputs`; returns that of its entry state.

    d_y (B, H, C, N) in any strides; states and their gradients (G, N, N); d_inputs like inputs.
    """
    chunk = _open_chunk(inputs, entry)
    left, right, values, mix = chunk.left, chunk.right, chunk.values, chunk.mix
    batch, heads, steps, size = chunk.decay.shape
    d_r, d_log_w, d_k, d_v, d_a, d_b = d_inputs

    d_read = left.new_zeros(left.shape) if d_y is None else torch.empty_like(left)  # [known ; y]
    if d_y is not None:
        d_read.view(batch, heads, 2 * steps, size)[..., steps:, :] = d_y
    d_values = torch.bmm(mix[:, steps:].mT, d_read[:, steps:])
    d_sum = None  # gradient of the state after the chunk, before its last decay
    if d_exit is not None:
        d_sum = d_exit * chunk.decay[:, :, -1:].flatten(0, 1)
        d_values.baddbmm_(right, d_sum.mT)
    d_read[:, :steps] = torch.bmm(chunk.solve.mT, d_values[:, :steps])
    d_values[:, steps:].baddbmm_(mix[:, :steps, steps:].mT, d_read[:, :steps])

    d_mix = _cut_to_past(torch.bmm(d_read, values.mT))
    d_left = torch.bmm(d_mix, right)
    d_right = torch.bmm(d_mix.mT, left)
    if entry is not None:
        d_left.baddbmm_(d_read, entry)
    if d_sum is not None:
        d_right.baddbmm_(values, d_sum)
    d_entry = None
    if wants_d_entry:
        d_entry = torch.bmm(d_read.mT, left) if d_sum is None else d_sum.baddbmm_(d_read.mT, left)

    shape = (batch, heads, 2 * steps, size)
    torch.mul(d_left.view(shape)[..., :steps, :], chunk.decay_before, out=d_a).neg_()
    torch.mul(d_left.view(shape)[..., steps:, :], chunk.decay, out=d_r)
    torch.div(d_right.view(shape)[..., :steps, :], chunk.decay, out=d_b)
    torch.div(d_right.view(shape)[..., steps:, :], chunk.decay, out=d_k)
    d_v.copy_(d_values.view(shape)[..., steps:, :])

    # Each factor is its input times or over exp(log P), so its gradient times itself is that of log P. The log decay of
    # a step is in log P of that step and all later ones; in what a reads, of later ones only.
    from_here_on = torch.ones(steps, steps, dtype=left.dtype, device=left.device).triu_()
    later = torch.cat([from_here_on.triu(1), from_here_on], dim=1)
    d_log_decay = torch.matmul(later, d_left.mul_(left))
    d_log_decay -= torch.matmul(torch.cat([from_here_on, from_here_on], dim=1), d_right.mul_(right))
    if d_exit is not None:
        d_log_decay += (d_exit * exit).sum(dim=1, keepdim=True)
    d_log_w.copy_(d_log_decay.view(batch, heads, steps, size))
    return d_entry


def _blocks(r: Tensor, spans: list[slice]) -> list[slice]:
    """Rows of the batch to take together."""
    batch, _, heads, size = r.shape
    rows = max(1, BLOCK_ELEMENTS // max(1, heads * size * spans[0].stop))
    return [slice(start, start + rows) for start in range(0, batch, rows)]


def _spans(time: int) -> list[slice]:
    """Chunks of equal length as far as possible, none above CHUNK."""
    count = -(-time // CHUNK)
    steps = -(-time // count)
    return [slice(start, min(start + steps, time)) for start in range(0, time, steps)]


def _forward(inputs: tuple[Tensor, ...], state: Tensor | None, keep_states: bool) -> tuple[Tensor, list[Tensor | None]]:
    """y (B, T, H, N) and the state (B, H, N, N) before each chunk and after the last one.

    Unless they are kept, the states after all chunks are one and the same tensor, overwritten on the way.
    """
    r, log_w, _, v, _, _ = inputs
    batch, _, heads, size = r.shape
    spans = _spans(r.shape[1])
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    fresh = len(spans) if keep_states else 1
    after = [log_w.new_empty(batch, heads, size, size) for _ in range(fresh)]
    states = [state, *(after if keep_states else after * len(spans))]
    for rows in _blocks(r, spans):
        for i, span in enumerate(spans):
            before = states[i]
            entry = None if before is None else before[rows].flatten(0, 1)
            exit = states[i + 1]
            piece = [x[rows, span].transpose(1, 2) for x in inputs]
            out = _chunk_forward(piece, entry, exit[rows].flatten(0, 1))
            y[rows, span] = out.view(piece[0].shape).transpose(1, 2)
    return y, states


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch.autocast(inputs[0].device.type, enabled=False):
            y, states = _forward(inputs, state, keep_states=True)
        ctx.save_for_backward(*inputs, *states)
        return y, states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        inputs, states = ctx.saved_tensors[:6], ctx.saved_tensors[6:]
        with torch.autocast(inputs[0].device.type, enabled=False):
            return _backward(inputs, states, d_y, d_final, ctx.needs_input_grad[0])


def _backward(
    inputs: tuple[Tensor, ...],
    states: tuple[Tensor | None, ...],
    d_y: Tensor | None,
    d_final: Tensor | None,
    wants_d_state: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the initial state and of the six inputs, chunks in reverse."""
    spans = _spans(inputs[0].shape[1])
    d_inputs = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs]
    d_state = torch.empty_like(states[0]) if wants_d_state else None
    for rows in _blocks(inputs[0], spans):
        d_entry = None if d_final is None else d_final[rows].flatten(0, 1)
        for i in reversed(range(len(spans))):
            before, after, span = states[i], states[i + 1], spans[i]
            d_entry = _chunk_backward(
                [x[rows, span].transpose(1, 2) for x in inputs],
                None if before is None else before[rows].flatten(0, 1),
                after[rows].flatten(0, 1),
                None if d_y is None else d_y[rows, span].transpose(1, 2),
                d_entry,
                [x[rows, span].transpose(1, 2) for x in d_inputs],
                wants_d_entry=wants_d_state or i > 0,
            )
        if d_state is not None:
            d_state[rows] = d_entry.view_as(d_state[rows])
    return d_state, *d_inputs


def wkv7_chunked(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`mm_rwkv7.ops.wkv7` for sequences of one length T >= 1, on any device, by torch alone.

    Computed in log_w's precision; y (B, T, H, N) in v's. When no gradient is asked for, nothing is kept but the state.
    """
    inputs = (r, log_w, k, v, a, b)
    if state is not None:
        state = state.to(log_w.dtype).contiguous()
    given = inputs if state is None else (*inputs, state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return _Chunked.apply(state, *inputs)
    with torch.autocast(r.device.type, enabled=False):
        y, states = _forward(inputs, state, keep_states=False)
    return y, states[-1]
