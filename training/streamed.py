"""The stage that reads endless texts: every lane goes on from the state that its last segment left."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mm_rwkv7.model import MMRWKV7
from training.packed import PackedStage
from training.settings import StageConfig
from training.truncated import Lanes


class StreamedStage(PackedStage):
    """Next-token prediction on segments of texts, as `TextData.batches` gives them when it is `carried`."""

    def __init__(self, model: MMRWKV7, config: StageConfig) -> None:
        super().__init__(model, config)
        self.lanes = Lanes(model.config.lm, config.batch)

    def _hidden(self, x: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The next segment x (1, T, D) of a lane."""
        hidden, state = self.model.lm.hidden(x, self.lanes.state(batch["lane"]))
        self.lanes.keep(batch["lane"], state)
        return hidden
