"""One sequence over several ranks, each with a span of it: a rank's state goes to the next one, its gradient comes
back.

What a recurrence tells its future is its state, whose size does not depend on the sequence's, so that a message a block
is all that ranks exchange (attention would have to send every key and value). Block after block goes to the next rank
as soon as it is computed: rank r works on block l while rank r - 1 works on block l + 1, forward, and the other way
round backward.

B batch, T time of a rank's span, D width, H heads, N head size.
"""

from collections.abc import Iterable, Iterator
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mm_rwkv7.rwkv7 import RWKV7, Block
from mm_rwkv7.state import LayerState, State
from training.truncated import summed_loss


def span(sequence: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """This rank's part of (B, T of all ranks): spans differ by one step at most."""
    world = dist.get_world_size(group)
    if sequence.shape[1] < world:
        raise ValueError(f"a sequence of {sequence.shape[1]} steps is too short for {world} ranks")
    return sequence.tensor_split(world, dim=1)[dist.get_rank(group)]


def hidden(
    lm: RWKV7, x: Tensor, state: State | None = None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, State]:
    """`RWKV7.hidden` of a sequence over all ranks of `group`: x (B, T, D) is this rank's span, `state` what the first
    rank begins with. -> (what the head reads (B, T, D), the state after this rank's span).

    Every rank must call this, and go backward as often as the others.
    """
    rank, world = dist.get_rank(group), dist.get_world_size(group)
    before = dist.get_global_rank(group, rank - 1) if group and rank else rank - 1
    behind = dist.get_global_rank(group, rank + 1) if group and rank + 1 < world else rank + 1
    begun = lm.initial_state(len(x)) if state is None or rank else state
    lm.check_state(begun, len(x))
    # Frozen or not, every block of every rank is on the gradient's way, so that no rank waits for another's in vain.
    way = torch.zeros((), device=x.device, requires_grad=True)
    x = lm.ln0(x)
    v_first = None
    layers = []
    for block, layer in zip(cast("Iterable[Block]", lm.blocks), begun.layers, strict=True):
        if rank:
            layer = LayerState(*_Receive.apply(way, before, group, *layer))
        x, layer, v_first = block(x, layer, v_first, None)
        if rank + 1 < world:
            x = _Send.apply(way, behind, group, x, *layer)
        layers.append(layer)
    return lm.ln_out(x), State(tuple(layers), begun.tokens_seen + x.shape[1], model=begun.model)


def loss(
    lm: RWKV7, ids: Tensor, targets: Tensor, state: State | None = None, group: dist.ProcessGroup | None = None
) -> tuple[Tensor, State]:
    """This rank's share of the mean cross entropy over all targets of the sequence: ids, targets (B, T) are its span,
    -100 where nothing is to be said. The shares' sum over the ranks is the loss; so are their gradients'
    (`sum_gradients`). -> (share, state after this span)."""
    output, state = hidden(lm, lm.embed(ids), state, group)
    wanted = (targets != -100).sum()
    dist.all_reduce(wanted, group=group)
    return summed_loss(lm, output, targets) / wanted.clamp(min=1), state


def sum_gradients(parameters: Iterable[nn.Parameter], group: dist.ProcessGroup | None = None) -> None:
    """After backward: every rank gets the whole sequence's gradients."""
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)


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
