"""placeholder"""

from collections.abc import Mapping

from mm_rwkv7.model import MMRWKV7
from training.hearing import SoundSource
from training.loop import Stage


class TaggingStage(Stage):
    def __init__(self, model: MMRWKV7, sources: Mapping[str, SoundSource]) -> None:
        super().__init__(model)
