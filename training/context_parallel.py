"""One sequence over several ranks, each with a span of it: a rank's state goes to the next one, its gradient comes
back.

What a recurrence tells its future is its state, whose size does not depend on the sequence's, so that a message a block
is all that ranks exchange (attention would have to send every key and value). Block after block goes to the next rank
as soon as it is computed: rank r works on block l while rank r - 1 works on block l + 1, forward, and the other way
round backward.

B batch, T time of a rank's span, S sequences in it, D width, H heads, N head size.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from mm_rwkv7.rwkv7 import RWKV7, Block
from mm_rwkv7.state import LayerState, State
from mm_rwkv7.token_shift import Sequences


def cut(pack: Mapping[str, Any], rank: int, ranks: int) -> dict[str, Any]:
    """What one of `ranks` processes reads of a pack of text (see `TextData`): a span of its `ids` and `targets`, which
    differ by one step at most, and of `cu_seqlens` what lies in it. "continued" says whether the span begins inside a
    sequence, whose state then comes from the rank before."""
    time = pack["ids"].shape[1]
    if time < ranks:
        raise ValueError(f"a pack of {time} tokens is too short for {ranks} processes")
    first, last = (place * (time // ranks) + min(place, time % ranks) for place in (rank, rank + 1))
    ends = pack["cu_seqlens"]
    inside = ends[(ends > first) & (ends < last)] - first
    return {
        **pack,
        **{name: pack[name][:, first:last] for name in ("ids", "targets")},
        "cu_seqlens": torch.cat([ends.new_tensor([0]), inside, ends.new_tensor([last - first])]),
        "continued": bool(rank and (ends != first).all()),
        "tokens": last - first,
    }


def hidden(
    lm: RWKV7,
    x: Tensor,
    state: State | None = None,
    group: dist.ProcessGroup | None = None,
    cu_seqlens: Tensor | None = None,
    continued: bool = True,
) -> tuple[Tensor, State]:
    """`RWKV7.hidden` of a sequence over all ranks of `group`: x (B, T, D) is this rank's span, `state` what the first
    rank begins with. -> (what the head reads (B, T, D), the state after this rank's span).

    With `cu_seqlens` (S + 1,) the span holds S sequences, B is 1, and the last one goes on in the next rank's span
    where that one is `continued`; the states are those of S rows.

    Every rank must call this, and go backward as often as the others.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    before = dist.get_global_rank(group, rank - 1) if group and rank else rank - 1
    behind = dist.get_global_rank(group, rank + 1) if group and rank + 1 < world else rank + 1
    rows = len(x) if cu_seqlens is None else len(cu_seqlens) - 1
    neighbours = None if cu_seqlens is None else Sequences.of(cu_seqlens, x.shape[1])
    begun = lm.initial_state(rows) if state is None or rank else state
    lm.check_state(begun, rows)
    # Frozen or not, every block of every rank is on the gradient's way, so that no rank waits for another's in vain.
    way = torch.zeros((), device=x.device, requires_grad=True)
    x = lm.ln0(x)
    v_first = None
    layers = []
    for block, layer in zip(cast("Iterable[Block]", lm.blocks), begun.layers, strict=True):
        if rank:
            met = layer if cu_seqlens is None else [tensor[:1] for tensor in layer]
            received = _Receive.apply(way, before, group, *met)
            if cu_seqlens is not None:  # what is not wanted still has a gradient, of zero, that is waited for
                pairs = zip(received, layer, strict=True)
                received = (torch.cat([tensor * continued, fresh[1:]]) for tensor, fresh in pairs)
            layer = LayerState(*received)
        x, layer, v_first = block(x, layer, v_first, neighbours)
        if rank + 1 < world:
            left = layer if cu_seqlens is None else [tensor[-1:] for tensor in layer]
            x = _Send.apply(way, behind, group, x, *left)
        layers.append(layer)
    return lm.ln_out(x), State(tuple(layers), begun.tokens_seen + x.shape[1], model=begun.model)


def last_state(state: State, group: dist.ProcessGroup | None = None) -> State:
    """The state after the whole sequence, on every rank, detached: what the first rank begins the next one with."""
    last = dist.get_world_size(group) - 1
    source = dist.get_global_rank(group, last) if group else last

    def sent(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().contiguous().clone()
        dist.broadcast(tensor, source, group=group)
        return tensor

    return state.map(sent)


def _packed(tensors: Iterable[Tensor]) -> Tensor:
    """One message in fp32, whatever precision a shift has."""
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])


def _unpacked(message: Tensor, like: Iterable[Tensor]) -> Iterator[Tensor]:
    start = 0
    for tensor in like:
        yield message[start : start + tensor.numel()].view(tensor.shape).to(tensor.dtype)
        start += tensor.numel()


class _Receive(torch.autograd.Function):
    """The state of the rank before; backward, its gradient goes there."""

    @staticmethod
    def forward(ctx: Any, way: Tensor, rank: int, group: dist.ProcessGroup | None, *like: Tensor) -> tuple[Tensor, ...]:
        ctx.rank, ctx.group = rank, group
        message = torch.empty(sum(tensor.numel() for tensor in like), device=way.device)
        dist.recv(message, rank, group)
        return tuple(_unpacked(message, like))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, ...]:
        dist.send(_packed(gradients), ctx.rank, ctx.group)
        return (None,) * (3 + len(gradients))


class _Send(torch.autograd.Function):
    """x as it is, and the state to the rank behind; backward, the state's gradient comes from there."""

    @staticmethod
    def forward(ctx: Any, way: Tensor, rank: int, group: dist.ProcessGroup | None, x: Tensor, *state: Tensor) -> Tensor:
        ctx.rank, ctx.group = rank, group
        ctx.like = [torch.empty_like(tensor, device="meta") for tensor in state]
        dist.send(_packed(state), rank, group)
        return x.view_as(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_x: Tensor) -> tuple[Tensor | None, ...]:
        message = torch.empty(sum(tensor.numel() for tensor in ctx.like), device=d_x.device)
        dist.recv(message, ctx.rank, ctx.group)
        return (None, None, None, d_x, *_unpacked(message, ctx.like))
