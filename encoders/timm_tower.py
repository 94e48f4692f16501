"""A timm image model as a tower: transformers give their patch tokens, convolutional nets their last map.

Letters: B batch, S side of the prepared picture, D width of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from encoders.protocol import INTERPOLATIONS, Preprocess


@dataclass(frozen=True)
class TimmTowerConfig:
    """A timm model name, the side of the picture it sees, and further arguments of `timm.create_model`
    (for example `{"output_stride": 16}`)."""

    name: str
    image_size: int
    options: Mapping[str, Any] = field(default_factory=dict)


class TimmTower(nn.Module):
    """pixels (B, 3, S, S) uint8 -> features (B, rows * columns, D), row by row, class and register tokens dropped.

    Built without pretrained weights unless `pretrained`, which lets timm fetch them by name.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, config: TimmTowerConfig, pretrained: bool = False) -> None:
        super().__init__()
        import timm
        from timm.data import resolve_model_data_config

        if not timm.is_model(config.name):
            raise ValueError(f"timm has no model {config.name!r}; `timm.list_models()` names those it has")
        # Some models compute buffers that no checkpoint holds, so a tower is built with values even where the
        # model around it is built on the meta device.
        with torch.device("cpu"):
            body: Any = timm.create_model(config.name, pretrained=pretrained, num_classes=0, **config.options)
            if hasattr(body, "set_input_size"):  # transformers resample their position embedding
                body.set_input_size(img_size=config.image_size)
            self.grid = _grid(body, config.image_size)
        data = resolve_model_data_config(body)
        interpolation = data["interpolation"] if data["interpolation"] in INTERPOLATIONS else "bicubic"
        self.preprocess = Preprocess(config.image_size, data["mean"], data["std"], interpolation)
        for name in ("mean", "std"):
            value = torch.tensor(data[name], device="cpu").view(3, 1, 1) * 255
            self.register_buffer(name, value, persistent=False)
        self.width: int = body.num_features
        self.body = body

    def forward(self, pixels: Tensor) -> Tensor:
        size = self.preprocess.size
        if pixels.shape[1:] != (3, size, size):
            raise ValueError(f"pixels have shape {tuple(pixels.shape)}, expected (B, 3, {size}, {size})")
        weights = next(self.body.parameters())
        features: Tensor = self.body.forward_features(((pixels - self.mean) / self.std).to(weights.dtype))
        if features.ndim == 4:
            return features.flatten(2).transpose(1, 2)
        return features[:, -self.grid[0] * self.grid[1] :]


def _grid(body: Any, size: int) -> tuple[int, int]:
    """Rows and columns of the features of a size x size picture; a ValueError for features that are no grid."""
    with torch.no_grad():
        shape = body.eval().forward_features(torch.zeros(1, 3, size, size)).shape
    body.train()
    if len(shape) == 4 and shape[1] == body.num_features:
        return shape[2], shape[3]
    rows, columns = getattr(getattr(body, "patch_embed", None), "grid_size", (0, 0))
    if len(shape) == 3 and shape[1] == rows * columns + body.num_prefix_tokens:
        return rows, columns
    raise ValueError(
        f"the timm model gives features of shape {tuple(shape)} for a {size} px picture, "
        "expected (1, width, rows, columns) or (1, prefix tokens + patches, width)"
    )
