"""Which token comes before which, where steps are padded or several sequences lie in one row.

Letters: B batch, T time, D width, S sequences.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Neighbours(NamedTuple):
    """Where each token's predecessor lies when some steps are padding; indices count the carried token as 0."""

    previous: Tensor  # (B, T, 1)
    last: Tensor  # (B, 1, 1)
    mask: Tensor  # (B, T, 1) bool, False where padded

    @classmethod
    def of(cls, mask: Tensor) -> "Neighbours":
        """mask: (B, T) bool, True at real tokens."""
        positions = torch.arange(1, mask.shape[1] + 1, device=mask.device)
        latest = torch.where(mask, positions, 0).cummax(dim=1).values  # (B, T) the newest real token so far
        previous = F.pad(latest[:, :-1], (1, 0))
        return cls(previous[..., None], latest[:, -1:, None], mask[..., None])


class Sequences(NamedTuple):
    """Where each token's predecessor lies when S sequences lie in one row; indices count the S carried tokens first."""

    previous: Tensor  # (T,)
    last: Tensor  # (S,)
    cu_seqlens: Tensor  # (S + 1,)

    @classmethod
    def of(cls, cu_seqlens: Tensor, time: int) -> "Sequences":
        """cu_seqlens: (S + 1,) integers from 0 to `time`."""
        starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
        count = len(starts)
        positions = torch.arange(time, device=cu_seqlens.device)
        owner = torch.searchsorted(ends, positions, right=True)  # passes over empty sequences
        previous = torch.where(positions == starts[owner], owner, count + positions - 1)
        carried = torch.arange(count, device=cu_seqlens.device)
        return cls(previous, torch.where(ends > starts, count + ends - 1, carried), cu_seqlens)


def token_shift(x: Tensor, carried: Tensor, neighbours: Neighbours | Sequences | None) -> tuple[Tensor, Tensor]:
    """x (B, T, D), carried (B or S, D) -> (x_{t-1} - x_t, the token to carry on)."""
    if neighbours is None:
        previous = torch.cat([carried[:, None].to(x.dtype), x[:, :-1]], dim=1)
        return previous - x, x[:, -1].clone()  # a view would keep all of x alive in the state
    if isinstance(neighbours, Sequences):
        line = torch.cat([carried.to(x.dtype), x[0]])
        return line.index_select(0, neighbours.previous)[None] - x, line.index_select(0, neighbours.last)
    line = torch.cat([carried[:, None].to(x.dtype), x], dim=1)
    width = x.shape[-1]
    previous = line.gather(1, neighbours.previous.expand(-1, -1, width))
    return previous - x, line.gather(1, neighbours.last.expand(-1, -1, width))[:, 0]
