"""One token at a time: what `generate` calls for every token that it writes.

B rows (texts that are written side by side), D width, V vocabulary.
"""

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from mm_rwkv7.rwkv7 import RWKV7
from mm_rwkv7.state import State


class Stepper(Protocol):
    """One model's decoding, without gradients. It reads the model's weights where they lie, so it sees every change
    of them, and it may be used for as many texts as one likes."""

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """x (B, D) as `RWKV7.embed` gives it -> (what the head reads (B, D) as `RWKV7.hidden` gives it, a new state).
        The given state stays as it is."""

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden (B, D) as a step gives it -> (B, V) fp32."""


def stepper(lm: RWKV7) -> Stepper:
    """The fastest way to decode with `lm` where it is."""
    return ModuleStepper(lm)


@dataclass(frozen=True)
class ModuleStepper:
    """The portable path: the modules themselves, with a time of one."""

    lm: RWKV7

    def __call__(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        hidden, state = self.lm.hidden(x[:, None], state)
        return hidden[:, 0], state

    def logits(self, hidden: Tensor) -> Tensor:
        found: Tensor = self.lm.head(hidden)
        return found.float()
