"""One chunk of WKV-7 as matrix products, forward and backward.

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

P_t never falls under exp(-exp(-0.5) * 64) = 1e-17, so fp32 holds every factor. The backward recomputes all this
from the inputs and the states around the chunk.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from .sequences import Inputs


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
    steps = mix.shape[-1] // 2
    of_a, of_r = mix[:, :steps], mix[:, steps:]
    for block, diagonal in zip((*of_a.split(steps, 2), *of_r.split(steps, 2)), (-1, -1, 0, 0), strict=True):
        block.tril_(diagonal)
    return mix


def _open_chunk(inputs: Inputs, entry: Tensor | None) -> _Chunk:
    """Everything forward and backward share: inputs (B, H, C, N) in any strides, entry state (G, N, N) or none."""
    r, log_w, k, v, a, b = inputs
    batch, heads, steps, size = r.shape
    log_decay = torch.matmul(log_w.new_ones(steps, steps).tril_(), log_w)
    decay_before = (log_decay - log_w).exp_()
    decay = log_decay.exp_()

    left, right, values = log_w.new_empty(3, batch, heads, 2 * steps, size)
    torch.mul(a, decay_before, out=left[..., :steps, :]).neg_()
    torch.mul(r, decay, out=left[..., steps:, :])
    torch.div(b, decay, out=right[..., :steps, :])
    torch.div(k, decay, out=right[..., steps:, :])
    values[..., steps:, :] = v
    left, right, values = left.flatten(0, 1), right.flatten(0, 1), values.flatten(0, 1)

    mix = _cut_to_past(torch.bmm(left, right.mT))
    minus_identity = log_w.new_full((steps,), -1).diag().expand(len(mix), steps, steps)
    solve = torch.linalg.solve_triangular(mix[:, :steps, :steps], minus_identity, upper=False, unitriangular=True)
    known = torch.bmm(mix[:, :steps, steps:], values[:, steps:])
    if entry is not None:
        known.baddbmm_(left[:, :steps], entry.mT)
    values[:, :steps] = torch.bmm(solve, known)
    return _Chunk(decay, decay_before, left, right, values, mix, solve)


def chunk_forward(inputs: Inputs, entry: Tensor | None, last: Tensor) -> Tensor:
    """Returns y (G, C, N) and writes the state after the chunk into `last` (G, N, N), which may be `entry` itself."""
    chunk = _open_chunk(inputs, entry)
    steps = chunk.decay.shape[2]
    y = torch.bmm(chunk.mix[:, steps:], chunk.values)
    if entry is None:
        torch.bmm(chunk.values.mT, chunk.right, out=last)
    else:
        y.baddbmm_(chunk.left[:, steps:], entry.mT)
        torch.baddbmm(entry, chunk.values.mT, chunk.right, out=last)
    last.mul_(chunk.decay[:, :, -1:].flatten(0, 1))
    return y


def chunk_backward(
    inputs: Inputs,
    entry: Tensor | None,
    last: Tensor,
    d_y: Tensor | None,
    d_last: Tensor | None,
    d_inputs: Inputs,
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
    if d_last is not None:
        d_sum = d_last * chunk.decay[:, :, -1:].flatten(0, 1)
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

    d_log_w.copy_(_d_log_decay(d_left.mul_(left), d_right.mul_(right)).view(batch, heads, steps, size))
    if d_last is not None:
        d_log_w += (d_last * last).sum(dim=1).view(batch, heads, 1, size)
    return d_entry


def _d_log_decay(d_left: Tensor, d_right: Tensor) -> Tensor:
    """Gradient of log_w (G, C, N) from that of the logarithms of left and right (G, 2C, N).

    The log decay of a step is in every log P_t from that step on: left_r has log P_t, left_a log P_{t-1}, right has
    -log P_t. So it gathers what comes at and after it, and for left_a what comes after it only.
    """
    steps = d_left.shape[1] // 2
    onward = d_left.new_ones(steps, steps).triu_()
    d_log_w = torch.matmul(torch.cat([onward.triu(1), onward], dim=1), d_left)
    return d_log_w - torch.matmul(onward, d_right[:, :steps] + d_right[:, steps:])
