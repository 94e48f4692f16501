"""What a model remembers while it reads: how large each head's state is after every token, and how slowly it fades.

Letters: T time, D width, L layers, H heads.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from mm_rwkv7.decode import Stepper
from mm_rwkv7.rwkv7 import RWKV7, Block
from mm_rwkv7.state import State
from mm_rwkv7.token_shift import token_shift


class Remembered(NamedTuple):
    """`norms` (T, L, H): the Frobenius norm of a head's wkv state after each token. `decays` (T, L, H): what that
    token's step leaves of the state before it, exp(log_w), as the mean over the head's channels: 1 keeps everything,
    exp(-exp(-0.5)) = 0.545 is the least. Both fp32 and on the CPU."""

    norms: Tensor
    decays: Tensor


@torch.no_grad()
def remember(lm: RWKV7, step: Stepper, x: Tensor, state: State | None = None) -> tuple[Remembered, State]:
    """Read x (T, D), as `RWKV7.embed` gives it, after what `state` (of one row) has read; `step` is one of `lm`'s.
    Returns T steps' figures and the state after them: the next piece of a text goes on from there."""
    state = lm.initial_state() if state is None else state
    decays = _decays(lm, x, state)
    norms = []
    for row in x.split(1):
        _, state = step(row, state)
        norms.append(torch.stack([layer.wkv[0].float().flatten(1).norm(dim=1) for layer in state.layers]))
    return Remembered(torch.stack(norms).cpu(), decays.cpu()), state


def _decays(lm: RWKV7, x: Tensor, state: State) -> Tensor:
    """(T, L, H), of all tokens at once."""
    config = lm.config
    x, v_first, found = lm.ln0(x[None]), None, []
    for block, layer in zip(lm.blocks, state.layers, strict=True):
        assert isinstance(block, Block)
        normed = block.ln1(x)
        dx, _ = token_shift(normed, layer.att_shift, None)
        log_w = block.time_mix.log_decay(torch.addcmul(normed, dx, block.time_mix.x_w.to(normed.dtype)))
        found.append(log_w.exp().view(-1, config.heads, config.head_size).mean(-1))
        x, _, v_first = block(x, layer, v_first, None)
    return torch.stack(found, dim=1)
