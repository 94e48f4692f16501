"""Cross entropy straight from what the head reads, a part of the vocabulary at a time.

Letters: n trained positions, D width, V vocabulary.

With logits z = h W^T (n, V), never whole in memory, and weights w (n,):

    loss = sum_i w_i (logsumexp_v z_iv - z_i,target_i)
    d loss / d z_iv = w_i (softmax(z_i)_v - [v = target_i])

The backward pass computes the logits again. L2Wrap, as RWKV-LM's trainer has it, leaves the loss's value alone and
adds to its gradient that of a penalty which keeps the largest logit of each position from drifting away:

    penalty = sum_i w_i (c / 2) (max_v z_iv)^2,    d penalty / d z_iv = w_i c max_v z_iv [v = argmax z_i]

There c = 1e-4 and w_i is one over the number of all positions; here w_i is the same weight as in the loss, and
positions without a target have none.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mm_rwkv7.ops import linear

PART = 8192  # rows of the head at a time


def cross_entropy(
    hidden: Tensor, head: Tensor, targets: Tensor, weights: Tensor, l2wrap: float = 0.0, part: int = PART
) -> tuple[Tensor, Tensor]:
    """hidden (n, D), head (V, D), targets (n,) integers, weights (n,) -> (the weighted sum of losses, fp32 scalar;
    whether the likeliest token is the target (n,) bool). Products are in autocast's precision where it is on."""
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    loss, best = _CrossEntropy.apply(hidden, head, targets, weights.float(), l2wrap, part, dtype)
    return loss, best == targets


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        targets: Tensor,
        weights: Tensor,
        l2wrap: float,
        part: int,
        dtype: torch.dtype,
    ) -> tuple[Tensor, Tensor]:
        n = len(targets)
        sums = hidden.new_full((n,), -torch.inf, dtype=torch.float32)  # log-sum-exp so far
        highest = sums.clone()
        best = torch.zeros_like(targets)
        wanted = torch.zeros_like(sums)  # the target's logit
        read = hidden.to(dtype)
        for first, rows in _parts(head, part):
            logits = _logits(read, rows)
            sums = torch.logaddexp(sums, logits.logsumexp(1))
            top, where = logits.max(1)
            best = torch.where(top > highest, where + first, best)
            highest = torch.maximum(highest, top)
            inside = (targets >= first) & (targets < first + len(rows))
            found = logits.gather(1, (targets - first).clamp(0, len(rows) - 1)[:, None])[:, 0]
            wanted = torch.where(inside, found, wanted)
        ctx.save_for_backward(hidden, head, targets, weights, sums, highest, best)
        ctx.settings = l2wrap, part, dtype
        ctx.mark_non_differentiable(best)
        return (weights * (sums - wanted)).sum(), best

    @staticmethod
    def backward(ctx: Any, d_loss: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        hidden, head, targets, weights, sums, highest, best = ctx.saved_tensors
        l2wrap, part, dtype = ctx.settings
        read = hidden.to(dtype)
        scale = weights * d_loss
        d_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        d_head = torch.empty_like(head) if ctx.needs_input_grad[1] else None
        positions = torch.arange(len(targets), device=targets.device)
        for first, rows in _parts(head, part):
            d_logits = (_logits(read, rows) - sums[:, None]).exp_()
            for chosen, share in ((targets, -torch.ones_like(sums)), (best, l2wrap * highest)):
                inside = (chosen >= first) & (chosen < first + len(rows))
                d_logits.index_put_((positions[inside], chosen[inside] - first), share[inside], accumulate=True)
            d_logits = (d_logits * scale[:, None]).to(dtype)
            if d_hidden is not None:
                d_hidden += linear(d_logits, rows.to(dtype).mT)
            if d_head is not None:
                d_head[first : first + len(rows)] = linear(d_logits.mT, read.mT)
        d_read = None if d_hidden is None else d_hidden.to(hidden.dtype)
        return d_read, d_head, None, None, None, None, None


def _parts(head: Tensor, part: int) -> Iterator[tuple[int, Tensor]]:
    first = 0
    for rows in head.split(part):
        yield first, rows
        first += len(rows)


def _logits(read: Tensor, rows: Tensor) -> Tensor:
    """In fp32, whatever autocast says."""
    with torch.autocast(read.device.type, enabled=False):
        return linear(read, rows.to(read.dtype)).float()
