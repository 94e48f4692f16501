"""Training on more than memory holds: the state goes on from segment to segment, the gradient stops between them.

B batch, T time, D width, H heads, N head size.
"""

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from mm_rwkv7.rwkv7 import RWKV7, RWKV7Config
from mm_rwkv7.state import LayerState, State

Loss = Callable[[Tensor, Tensor], Tensor]


def detached(state: State) -> State:
    """The same state, through which no gradient goes back."""
    return state.map(Tensor.detach)


def summed_loss(lm: RWKV7, hidden: Tensor, targets: Tensor) -> Tensor:
    """hidden (B, T, D), targets (B, T) -> the sum of cross entropies over the targets that are not -100."""
    logits = lm.head(hidden).float()
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), ignore_index=-100, reduction="sum")


def backward_in_segments(
    lm: RWKV7,
    ids: Tensor,
    targets: Tensor,
    segment: int,
    state: State | None = None,
    loss: Loss | None = None,
) -> tuple[Tensor, State]:
    """Truncated back-propagation through time: read ids (B, T) in segments of `segment` steps, each backward before the
    next is read, so that memory is one segment's however large T is. The gradients of the mean loss over the targets
    (B, T) are added to the parameters'. -> (that loss, detached; the state after T, detached).

    loss: (hidden (B, t, D), targets (B, t)) -> the sum of a segment's losses; cross entropy through the head if not
    given."""
    if segment < 1:
        raise ValueError(f"segment is {segment}, expected at least 1")
    wanted = int((targets != -100).sum())
    if not wanted:
        raise ValueError("no target is other than -100: there is nothing to learn")
    state = lm.initial_state(len(ids)) if state is None else detached(state)
    total = torch.zeros((), device=ids.device)
    for piece, after in zip(ids.split(segment, dim=1), targets.split(segment, dim=1), strict=True):
        hidden, state = lm.hidden(lm.embed(piece), state)
        value = summed_loss(lm, hidden, after) if loss is None else loss(hidden, after)
        value = value / wanted
        value.backward()
        state = detached(state)
        total += value.detach()
    return total, state


class Lanes(nn.Module):
    """The states of endless texts, each read a segment a step. `lane` is a batch's name for its text (see `TextData`),
    L their number. They are buffers, so that a checkpoint holds them: a run that goes on has read what it had read.

    Of several processes, process r keeps the lanes whose number divided by that of processes leaves r, or, where each
    `context` processes share their texts, group r does; a checkpoint gets those of all.
    """

    wkv: Tensor  # (L, layers, H, N, N)
    att_shift: Tensor  # (L, layers, D)
    ffn_shift: Tensor  # (L, layers, D)

    def __init__(self, config: RWKV7Config, lanes: int, context: int = 1) -> None:
        super().__init__()
        self.context = context
        for name, shape in zip(LayerState._fields, _shapes(config), strict=True):
            self.register_buffer(name, torch.zeros(lanes, config.layers, *shape))
        self.register_state_dict_pre_hook(_gather)

    def state(self, lane: int) -> State:
        """What the lane has read (one row); empty at first."""
        rows = (getattr(self, name)[lane, :, None].clone() for name in LayerState._fields)
        return State(tuple(LayerState(*layer) for layer in zip(*rows, strict=True)))

    @torch.no_grad()
    def keep(self, lane: int, state: State) -> None:
        """The state (one row) after the lane's next segment, through which no gradient will go back. One that is no
        number is left out, as the step that gave it is: the lane would never get rid of it."""
        if not all(tensor.isfinite().all() for layer in state.layers for tensor in layer):
            return
        for name, layers in zip(LayerState._fields, zip(*state.layers, strict=True), strict=True):
            getattr(self, name)[lane] = torch.cat(layers)


def _shapes(config: RWKV7Config) -> tuple[tuple[int, ...], ...]:
    return (config.heads, config.head_size, config.head_size), (config.width,), (config.width,)


@torch.no_grad()
def _gather(lanes: Lanes, prefix: str, keep_vars: bool) -> None:
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return
    groups = dist.get_world_size() // lanes.context
    group, place = divmod(dist.get_rank(), lanes.context)
    for buffer in lanes.buffers():
        others = (torch.arange(len(buffer), device=buffer.device) % groups != group) | (place > 0)
        buffer[others] = 0
        dist.all_reduce(buffer)
