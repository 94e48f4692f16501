"""What a stage is to the loop."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mm_rwkv7.model import MMRWKV7


class Stage(nn.Module):
    """How samples become a batch, and a batch a loss. A stage holds the whole model, beside what only it needs, so
    that every checkpoint holds what the next stage starts from."""

    def __init__(self, model: MMRWKV7) -> None:
        super().__init__()
        self.model = model

    def collate(self, drawn: Sequence[tuple[str, Any]], rng: random.Random) -> dict[str, Any]:
        """(source, sample) pairs, of the kinds of samples that the stage is made for -> one batch of tensors."""
        raise NotImplementedError

    def weight(self, batch: Mapping[str, Any]) -> float:
        """Of how many things `loss` is the mean: what the batch weighs beside the others of its step."""
        return 1.0

    def loss(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """-> (scalar loss, what to log beside it)."""
        raise NotImplementedError

    def forward(self, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, float]]:
        """The loss, by the way that what spreads a stage over processes looks at."""
        return self.loss(batch)

    def finish(self) -> None:
        """Called after the last step, and again if a run that was done is started anew."""

    def export(self, folder: Path) -> None:
        """Write what a finished stage leaves in the run's `folder` beside the model."""
