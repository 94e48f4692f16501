"""The visual part of an open_clip model: its patch tokens, or its last feature map.

Letters: I pictures, S side of the prepared picture, M tokens, E width of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from encoders.protocol import Preprocess
from encoders.timm_model import check_name
from encoders.tower import Grid, Tower, map_tokens, read_layer


@dataclass(frozen=True)
class OpenClipTowerConfig:
    """A name of open_clip (`ViT-L-14-336-quickgelu`), or `hf-hub:owner/repo` with the `model_cfg` of that repository's
    open_clip_config.json in `model`.

    `weights` is open_clip's tag of the published weights (`openai`); a Hub name needs none. `layer` is the block that
    is read, counted from the end, and `norm` says whether the final norm follows.
    """

    name: str
    preprocess: Preprocess
    model: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    layer: int = -1
    norm: bool = True
    kind: str = "open_clip"


class OpenClipTower(Tower):
    """pixels (I, 3, S, S) uint8 -> features (I, M, E), row by row, the class token dropped."""

    def __init__(self, config: OpenClipTowerConfig, pretrained: bool = False) -> None:
        import open_clip

        size = config.preprocess.size
        model = config.model or open_clip.get_model_config(config.name)
        if model is None:
            raise ValueError(f"open_clip has no model {config.name!r}, and the tower's config does not describe it")
        if behind := model["vision_cfg"].get("timm_model_name"):
            check_name(behind)
        if pretrained and not config.weights and ":" not in config.name:
            raise ValueError(f"the tower's config does not say which weights of {config.name!r} to fetch")

        def make(pretrained: bool) -> Any:
            if pretrained:
                return open_clip.create_model(
                    config.name, config.weights or None, force_image_size=size, require_pretrained=True
                ).visual
            vision = {**model["vision_cfg"], "image_size": size, "timm_model_pretrained": False}
            text = open_clip.CLIPTextCfg(context_length=1, vocab_size=1, width=1, heads=1, layers=1)
            whole = open_clip.CustomTextCLIP(
                model["embed_dim"], vision, text, quick_gelu=model.get("quick_gelu", False)
            )
            if hasattr(whole.visual, "set_input_size"):  # timm's models behind open_clip's adapter
                whole.visual.set_input_size(size)
            return whole.visual

        self.config = config
        super().__init__(config.preprocess, make, pretrained)

    def read(self, body: Any, pictures: Tensor) -> tuple[Tensor, Grid]:
        read = read_layer(body, pictures, self.config.layer, normalize_intermediates=self.config.norm)
        (features,) = read["image_intermediates"]
        return map_tokens(features)


def own_name(name: str) -> str | None:
    """The name in `OpenClipTower` of a tensor of a whole open_clip model; None for what is not of its visual part."""
    return "body." + name.removeprefix("visual.") if name.startswith("visual.") else None
