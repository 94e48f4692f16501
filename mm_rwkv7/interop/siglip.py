"""A SigLIP tower inside a foreign checkpoint, under the names that transformers saves."""

import math
from typing import Any

from encoders.protocol import Preprocess
from encoders.transformers_tower import TransformersTowerConfig, own_name
from mm_rwkv7.interop.parts import Part, Shapes, renamed_part

HEADS = {768: 12, 1024: 16, 1152: 16, 1536: 16}  # of the published models by width: base, large, so400m, giant-opt
HALF = (0.5, 0.5, 0.5)
# The base model, for a file that leaves it out.
BASE = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def siglip_config(shapes: Shapes, prefix: str, published: str) -> TransformersTowerConfig:
    """The tower behind `prefix`, or the `published` SigLIP2 base of which a file without one says nothing. Pictures are
    prepared as the published processor does: squashed by bilinear interpolation."""
    if shapes.holds(prefix):
        sizes, patch, side = _sizes(shapes, prefix)
    else:
        sizes, patch, side = BASE, 16, int(published.rpartition("-")[2])
    vision = {"model_type": "siglip_vision_model", "patch_size": patch, **sizes}
    return TransformersTowerConfig(vision, Preprocess(side, HALF, HALF, "bilinear"), name=published)


def _sizes(shapes: Shapes, prefix: str) -> tuple[dict[str, Any], int, int]:
    """-> (sizes, side of a patch, side of a picture in pixels)."""
    width, _, patch, _ = shapes.of(f"{prefix}embeddings.patch_embedding.weight", 4)
    cells, _ = shapes.of(f"{prefix}embeddings.position_embedding.weight", 2)
    hidden, _ = shapes.of(f"{prefix}encoder.layers.0.mlp.fc1.weight", 2)
    sizes = {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": shapes.depth(f"{prefix}encoder.layers."),
        "num_attention_heads": _heads(shapes, width),
        "vision_use_head": shapes.holds(f"{prefix}head."),
    }
    return sizes, patch, math.isqrt(cells) * patch


def _heads(shapes: Shapes, width: int) -> int:
    """No tensor's shape tells it. A tower smaller than all published ones has heads of 64, like their smallest."""
    if width in HEADS:
        return HEADS[width]
    if width < min(HEADS) and width % 64 == 0:
        return width // 64
    raise ValueError(
        f"{shapes.stored.path} holds a SigLIP of width {width}, whose number of heads is not known; "
        f"expected width {', '.join(map(str, HEADS))} or a smaller multiple of 64"
    )


def siglip_part(shapes: Shapes, prefix: str) -> Part:
    """Its tensors as those of `MMRWKV7.tower`."""
    return renamed_part(shapes.stored.tensors, prefix, "tower.", own_name, lambda name: name.removeprefix("body."))
