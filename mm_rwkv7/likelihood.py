"""How likely texts are after what was read: the log-probability of every token of several continuations of one state.

Letters: B rows, T time, D width, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from mm_rwkv7.generate import PIECE
from mm_rwkv7.int8 import Int8Linear
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import State

ROWS = 32  # continuations read side by side


@dataclass(frozen=True)
class Likelihood:
    """One continuation: its tokens, the natural logarithm of each one's probability after all that came before it, and
    whether it was the likeliest one there."""

    tokens: tuple[int, ...]
    log_probs: tuple[float, ...]
    likeliest: tuple[bool, ...]

    @property
    def total(self) -> float:
        """The logarithm of the whole continuation's probability."""
        return math.fsum(self.log_probs)

    @property
    def mean(self) -> float:
        """The logarithm of a token's probability, on average."""
        return self.total / len(self.tokens)

    @property
    def greedy(self) -> bool:
        """Whether taking the likeliest token each time writes this continuation."""
        return all(self.likeliest)


@torch.no_grad()
def likelihoods(
    model: MMRWKV7, hidden: Tensor, state: State, continuations: Sequence[Sequence[int]]
) -> list[Likelihood]:
    """What `prefill` returns after a prompt, hidden (1, D) and its state, and the ids of several continuations, none of
    them empty -> one `Likelihood` each.

    The state is read by copies of it, the continuations side by side, long ones in pieces at constant memory. Logits
    and their logarithms are computed in fp32 whatever the weights' precision, over the whole vocabulary.
    """
    if not all(map(len, continuations)):
        raise ValueError("a continuation is empty, expected at least one token")
    if hidden.shape[0] != 1 or state.batch != 1:
        raise ValueError(f"expected one prompt, got {hidden.shape[0]} hidden vectors and {state.batch} states")
    head = _head(model.lm)
    first = F.linear(hidden.float(), head).log_softmax(-1)  # (1, V), the same for every continuation
    order = sorted(range(len(continuations)), key=lambda i: len(continuations[i]))
    found: dict[int, Likelihood] = {}
    for start in range(0, len(order), ROWS):
        rows = order[start : start + ROWS]
        read = _side_by_side(model.lm, head, first, state, [continuations[i] for i in rows])
        found.update(zip(rows, read, strict=True))
    return [found[i] for i in range(len(continuations))]


def _side_by_side(
    lm: RWKV7, head: Tensor, first: Tensor, state: State, rows: Sequence[Sequence[int]]
) -> list[Likelihood]:
    lengths = [len(row) for row in rows]
    padded = [[*row, *[0] * (max(lengths) - len(row))] for row in rows]
    ids = torch.tensor(padded, device=first.device)  # (B, T)
    parts = [_look_up(first.expand(len(rows), -1)[:, None], ids[:, :1])]
    if ids.shape[1] > 1:
        state = state.repeat(len(rows))
        size = max(PIECE // len(rows), 1)
        # Padding stands at the end, where nothing is read after it that counts.
        for piece, wanted in zip(ids[:, :-1].split(size, 1), ids[:, 1:].split(size, 1), strict=True):
            after, state = lm.hidden(lm.embed(piece), state)
            parts.append(_look_up(F.linear(after.float(), head).log_softmax(-1), wanted))
    log_probs, likeliest = (torch.cat(columns, 1).tolist() for columns in zip(*parts, strict=True))
    return [
        Likelihood(tuple(row), tuple(numbers[:length]), tuple(flags[:length]))
        for row, length, numbers, flags in zip(rows, lengths, log_probs, likeliest, strict=True)
    ]


def _look_up(log_probs: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """log_probs (B, T, V), ids (B, T) -> those of the ids (B, T), and whether each is the greatest."""
    return log_probs.gather(-1, ids[..., None])[..., 0], log_probs.argmax(-1) == ids


def _head(lm: RWKV7) -> Tensor:
    """(V, D) fp32: logits of half precision would have too few digits to tell likelihoods apart."""
    head = lm.head
    return head.dequantised(torch.float32) if isinstance(head, Int8Linear) else head.weight.float()
