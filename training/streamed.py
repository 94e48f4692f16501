"""The stage that reads endless texts: every lane goes on from the state that its last segment left."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mm_rwkv7.model import MMRWKV7
from training import context_parallel
from training.distributed import World
from training.packed import PackedStage
from training.settings import StageConfig
from training.truncated import Lanes


class StreamedStage(PackedStage):
    """Next-token prediction on segments of texts, as `TextData.batches` gives them when it is `carried`; processes that
    share them have a span of every segment."""

    def __init__(self, model: MMRWKV7, config: StageConfig, world: World) -> None:
        super().__init__(model, config)
        self.group = world.group
        self.lanes = Lanes(model.config.lm, config.batch, world.context)

    def _hidden(self, x: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The next segment x (1, T, D) of a lane."""
        state = self.lanes.state(batch["lane"])
        if self.group is None:
            hidden, state = self.model.lm.hidden(x, state)
        else:
            hidden, state = context_parallel.hidden(self.model.lm, x, state, self.group)
            state = context_parallel.last_state(state, self.group)
        self.lanes.keep(batch["lane"], state)
        return hidden
