"""WKV-7 a chunk at a time: matrix products inside a chunk, the recurrence only from chunk to chunk.

B batch, T time, H heads, N head size, C steps in a chunk, G = B * H.

The backward is written out: it keeps the inputs and the states between chunks, and recomputes the rest.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .chunk import chunk_backward, chunk_forward
from .sequences import Inputs

CHUNK = 64
BLOCK_ELEMENTS = 1 << 18  # in one (B, H, C, N) factor: the rows of a large batch are taken a few at a time


def _spans(time: int) -> list[slice]:
    """Chunks of equal length as far as possible, none above CHUNK."""
    steps = -(-time // -(-time // CHUNK))
    return [slice(start, min(start + steps, time)) for start in range(0, time, steps)]


def _blocks(r: Tensor) -> list[slice]:
    """Rows of the batch to take together."""
    batch, time, heads, size = r.shape
    rows = max(1, BLOCK_ELEMENTS // (heads * size * min(time, CHUNK)))
    return [slice(start, start + rows) for start in range(0, batch, rows)]


def _pieces(tensors: Inputs, rows: slice, span: slice) -> Inputs:
    """(B, H, C, N) views of some rows and steps of (B, T, H, N)."""
    return tuple(x[rows, span].transpose(1, 2) for x in tensors)


def _heads(states: Tensor | None, rows: slice) -> Tensor | None:
    """Some rows of (B, H, N, N) as (G, N, N)."""
    return None if states is None else states[rows].flatten(0, 1)


def _forward(inputs: Inputs, state: Tensor | None, keep_states: bool) -> tuple[Tensor, list[Tensor]]:
    """y (B, T, H, N) and the state (B, H, N, N) after each chunk.

    Unless they are kept, the states are one and the same tensor, overwritten from chunk to chunk.
    """
    r, log_w, _, v, _, _ = inputs
    batch, time, heads, size = r.shape
    spans = _spans(time)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)
    if keep_states:
        states = [log_w.new_empty(batch, heads, size, size) for _ in spans]
    else:
        states = [log_w.new_empty(batch, heads, size, size)] * len(spans)
    for rows in _blocks(r):
        entry = _heads(state, rows)
        for span, after in zip(spans, states, strict=True):
            last = after[rows].flatten(0, 1)
            (y_piece,) = _pieces((y,), rows, span)
            out = chunk_forward(_pieces(inputs, rows, span), entry, last)
            y_piece.copy_(out.view(y_piece.shape))
            entry = last
    return y, states


def _backward(
    inputs: Inputs,
    state: Tensor | None,
    states: list[Tensor],
    d_y: Tensor | None,
    d_final: Tensor | None,
    wants_d_state: bool,
) -> tuple[Tensor | None, ...]:
    """Gradients of the initial state and of the six inputs; states as `_forward` gave them."""
    r, log_w, *_ = inputs
    batch, time, heads, size = r.shape
    spans = _spans(time)
    d_inputs = tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs)
    d_state = log_w.new_empty(batch, heads, size, size) if wants_d_state else None
    for rows in _blocks(r):
        d_entry = _heads(d_final, rows)
        for i, span in reversed(list(enumerate(spans))):
            d_entry = chunk_backward(
                _pieces(inputs, rows, span),
                _heads(states[i - 1] if i else state, rows),
                states[i][rows].flatten(0, 1),
                None if d_y is None else d_y[rows, span].transpose(1, 2),
                d_entry,
                _pieces(d_inputs, rows, span),
                wants_d_entry=wants_d_state or i > 0,
            )
        if d_state is not None and d_entry is not None:
            d_state[rows] = d_entry.view_as(d_state[rows])
    return d_state, *d_inputs


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor | None, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        with torch.autocast(inputs[0].device.type, enabled=False):
            y, states = _forward(inputs, state, keep_states=True)
        ctx.save_for_backward(*inputs, state, *states)
        return y, states[-1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor | None, d_final: Tensor | None) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # read once: a recomputed block gives them only once
        (*inputs, state), states = saved[:7], saved[7:]
        with torch.autocast(inputs[0].device.type, enabled=False):
            return _backward(tuple(inputs), state, list(states), d_y, d_final, ctx.needs_input_grad[0])


def wkv7_chunked(inputs: Inputs, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`mm_rwkv7.ops.wkv7` for sequences of one length T >= 1, on any device, by torch alone.

    inputs: r, log_w, k, v, a, b. When no gradient is asked for, nothing is kept but the state.
    """
    if state is not None:
        state = state.to(inputs[1].dtype).contiguous()
    given = inputs if state is None else (*inputs, state)
    if torch.is_grad_enabled() and any(x.requires_grad for x in given):
        return _Chunked.apply(state, *inputs)
    with torch.autocast(inputs[0].device.type, enabled=False):
        y, states = _forward(inputs, state, keep_states=False)
    return y, states[-1]
