"""Training on more than memory holds: the state goes on from segment to segment, the gradient stops between them.

B batch, T time, D width.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.rwkv7 import RWKV7
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


class Lanes:
    """The states of endless texts, each read a segment a step: `lane` is a batch's name for its text (`TextData`).

    A lane begins with the empty state. `state_dict` and `load_state_dict` are for checkpoints: without it a run that
    goes on would have forgotten what it had read."""

    def __init__(self, lm: RWKV7) -> None:
        self.lm = lm
        self._states: dict[int, State] = {}

    def state(self, lane: int) -> State:
        """What the lane has read (one row), detached."""
        return self._states.get(lane) or self.lm.initial_state(1)

    def keep(self, lane: int, state: State) -> None:
        """The state after the lane's next segment. It is kept without its gradient's way."""
        self._states[lane] = detached(state)

    def state_dict(self) -> dict[str, Tensor]:
        """`<lane>.<layer>.<name>` -> the tensor."""
        return {
            f"{lane}.{i}.{name}": tensor
            for lane, state in self._states.items()
            for i, layer in enumerate(state.layers)
            for name, tensor in layer._asdict().items()
        }

    def load_state_dict(self, tensors: Mapping[str, Any]) -> None:
        """Lanes that another rank kept may be among them."""
        layers = range(self.lm.config.layers)
        self._states = {
            lane: State(
                tuple(LayerState(*(tensors[f"{lane}.{i}.{name}"] for name in LayerState._fields)) for i in layers)
            )
            for lane in sorted({int(name.split(".")[0]) for name in tensors})
        }
        for state in self._states.values():
            self.lm.check_state(state, 1)
