"""What our models are to every harness: one `Pipeline`, opened by the arguments that they give."""

from typing import Any

import torch

from eval.adapters.options import place
from mm_rwkv7.pipeline import Pipeline


class Adapter:
    """Stands before the harness's own class. `pretrained`, `device` and `dtype` are those of
    `Pipeline.from_pretrained`; the batch sizes of the harness are taken and not needed."""

    def __init__(
        self,
        pretrained: str = "nano",
        device: str | None = None,
        dtype: str = "auto",
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        self.pipeline = Pipeline.from_pretrained(pretrained, place(device), dtype)

    @property
    def device(self) -> torch.device:
        return self.pipeline.device
