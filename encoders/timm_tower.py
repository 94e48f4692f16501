"""A timm image model as a tower: transformers give their patch tokens, convolutional nets their last map.

Letters: I pictures, S side of the prepared picture, M tokens, E width of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from encoders.protocol import INTERPOLATIONS, Preprocess
from encoders.timm_model import check_name, check_options
from encoders.tower import Grid, Tower, map_tokens, read_layer


@dataclass(frozen=True)
class TimmTowerConfig:
    """A timm model name, the side of the picture it sees, and further arguments of `timm.create_model`
    (for example `{"output_stride": 16}`).

    `layer` is the block that is read, counted from the end, and `norm` says whether the model's final norm follows:
    (-1, True) are the model's own features, (-2, False) those of VisualRWKV. `preprocess` replaces timm's own.
    """

    name: str
    image_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    layer: int = -1
    norm: bool = True
    preprocess: Preprocess | None = None
    kind: str = "timm"

    def __post_init__(self) -> None:
        check_options(self.options)
        if self.preprocess is not None and self.preprocess.size != self.image_size:
            raise ValueError(f"the image size is {self.image_size}, but preprocess.size {self.preprocess.size}")


class TimmTower(Tower):
    """pixels (I, 3, S, S) uint8 -> features (I, rows * columns, E), row by row, class and register tokens dropped.

    Built without pretrained weights unless `pretrained`, which lets timm fetch them by name.
    """

    def __init__(self, config: TimmTowerConfig, pretrained: bool = False) -> None:
        import timm

        check_name(config.name)

        def make(pretrained: bool) -> Any:
            body: Any = timm.create_model(config.name, pretrained=pretrained, num_classes=0, **config.options)
            if hasattr(body, "set_input_size"):  # transformers resample their position embedding
                body.set_input_size(img_size=config.image_size)
            return body

        self.config = config
        super().__init__(config.preprocess or published_preprocess(config.name, config.image_size), make, pretrained)

    def read(self, body: Any, pictures: Tensor) -> tuple[Tensor, Grid]:
        if (self.config.layer, self.config.norm) == (-1, True):
            return _own_features(body, pictures)
        (features,) = read_layer(body, pictures, self.config.layer, norm=self.config.norm)
        return map_tokens(features)


def published_preprocess(name: str, size: int) -> Preprocess:
    """How timm says that pictures are prepared for the model `name`, at another size."""
    import timm
    from timm.data import resolve_data_config

    published = timm.get_pretrained_cfg(name)
    data = resolve_data_config(pretrained_cfg=published.to_dict() if published else {})
    interpolation = data["interpolation"] if data["interpolation"] in INTERPOLATIONS else "bicubic"
    return Preprocess(size, data["mean"], data["std"], interpolation)


def _own_features(body: Any, pictures: Tensor) -> tuple[Tensor, Grid]:
    features = body.forward_features(pictures)
    if features.ndim == 4 and features.shape[1] == body.num_features:
        return map_tokens(features)
    rows, columns = getattr(getattr(body, "patch_embed", None), "grid_size", (0, 0))
    if features.ndim == 3 and features.shape[1] == rows * columns + body.num_prefix_tokens:
        return features[:, -rows * columns :], (rows, columns)
    raise ValueError(
        f"the timm model gives features of shape {tuple(features.shape)} for a {pictures.shape[-1]} px picture, "
        "expected (I, width, rows, columns) or (I, prefix tokens + patches, width)"
    )
