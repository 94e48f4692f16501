"""SigLIP, SigLIP2 and CLIP as Hugging Face transformers saves them.

Letters: I pictures, S side of the prepared picture, M tokens, E width of the features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from encoders.protocol import Preprocess
from encoders.published import fetch
from encoders.tower import Grid, Tower

# model_type of a vision config -> the classes of transformers
CLASSES = {
    "siglip_vision_model": ("SiglipVisionConfig", "SiglipVisionModel"),
    "clip_vision_model": ("CLIPVisionConfig", "CLIPVisionModel"),
}


@dataclass(frozen=True)
class TransformersTowerConfig:
    """`vision` is the model's vision config as its config.json holds it, `model_type` included.

    `layer` is the block that is read, counted from the end, and `norm` says whether `post_layernorm` follows. So
    `last_hidden_state` is (-1, True) for SigLIP and (-1, False) for CLIP. `class_token` keeps CLIP's class token before
    the patches. `name` is the Hub repository with the published weights.
    """

    vision: Mapping[str, Any]
    preprocess: Preprocess
    layer: int = -1
    norm: bool = True
    class_token: bool = False
    name: str = ""
    kind: str = "transformers"

    def __post_init__(self) -> None:
        model = self.vision.get("model_type")
        if model not in CLASSES:
            raise ValueError(f"the vision config has model_type {model!r}, expected one of {sorted(CLASSES)}")
        if refused := [key for key in self.vision if "attn_implementation" in key]:  # it may name code on the Hub
            raise ValueError(f"the vision config sets {', '.join(refused)}, expected sizes of the architecture only")
        if self.class_token and model != "clip_vision_model":
            raise ValueError(f"{model} has no class token to keep")


class TransformersTower(Tower):
    """pixels (I, 3, S, S) uint8 -> features (I, M, E), row by row."""

    def __init__(self, config: TransformersTowerConfig, pretrained: bool = False) -> None:
        import transformers

        config_class, model_class = (getattr(transformers, name) for name in CLASSES[config.vision["model_type"]])
        vision = config_class(**{**config.vision, "image_size": config.preprocess.size})
        if not -vision.num_hidden_layers <= config.layer < 0:
            raise ValueError(
                f"layer is {config.layer}, expected one of the {vision.num_hidden_layers}, from the end: -1"
            )
        if pretrained and not config.name:
            raise ValueError("the tower's config names no repository to fetch pretrained weights from")

        def make(pretrained: bool) -> Any:
            return fetch(model_class, config.name, vision) if pretrained else model_class(vision)

        self.config = config
        self.patch: int = vision.patch_size
        super().__init__(config.preprocess, make, pretrained)

    def read(self, body: Any, pictures: Tensor) -> tuple[Tensor, Grid]:
        side = pictures.shape[-1] // self.patch
        features = body(pixel_values=pictures, output_hidden_states=True).hidden_states[self.config.layer]
        if self.config.norm:
            features = body.post_layernorm(features)
        return features if self.config.class_token else features[:, -side * side :], (side, side)


def own_name(name: str) -> str | None:
    """The name in `TransformersTower` of a checkpoint's tensor (`vision_model.encoder...`, with or without the first
    part); None for the position numbers that old files hold, which are no weights."""
    if name.endswith("embeddings.position_ids"):
        return None
    return "body." + name.removeprefix("vision_model.")
