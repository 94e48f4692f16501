"""VisualRWKV 7.00 to 7.04: `rwkv.` under BlinkDL's names, `vit.`, `proj.`, and from 7.03 on `vtc.`.

A checkpoint is one file, or the pair that the project's export writes: NAME_rwkv.pth without the prefix, and
NAME_visual.pth with the rest. 7.01 and 7.02 hold the same tensors, and so do 7.03 and 7.04: a `v0702` or the like in
the path tells them apart, and without it they are 7.01 and 7.03.
"""

import re

from encoders.tiling import Tiling
from mm_rwkv7.compressor import CompressorConfig
from mm_rwkv7.config import MMConfig
from mm_rwkv7.interop.files import Stored
from mm_rwkv7.interop.format import Checkpoint
from mm_rwkv7.interop.parts import Part, Shapes, assemble, blinkdl_part, renamed_part
from mm_rwkv7.interop.siglip import siglip_config, siglip_part
from mm_rwkv7.interop.trio import DINO, WIDTH, trio_config, trio_parts
from mm_rwkv7.projector import GatedProjectorConfig, LinearProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config

PUBLISHED = "google/siglip2-base-patch16-256"
COMPRESSED = 256  # tokens, as the training scripts of 7.03 and 7.04 say
MOST_TOKENS = 128  # of an answer, in the project's evaluation


def recognises(stored: Stored) -> bool:
    return any(name.startswith(("proj.", "vrwkv.")) for name in stored.tensors) and Shapes(stored).holds("rwkv.")


def open_stored(stored: Stored) -> Checkpoint:
    shapes = Shapes(stored)
    if shapes.holds("vrwkv."):
        raise ValueError(f"{stored.path} holds VisualRWKV 7.10, expected 7.00 to 7.04")
    lm = blinkdl_part(stored.tensors, "rwkv.", "lm.")
    sizes = RWKV7Config.of({name: tensor.shape for name, tensor in lm.tensors.items()}, stored.path, lm.spell)
    projector = _projector(shapes)
    parts = [lm, renamed_part(stored.tensors, "proj.", "projector.")]
    if shapes.holds(DINO) or (projector.input_width == WIDTH and not shapes.holds("vit.")):
        config = MMConfig(sizes, trio_config(shapes), projector, max_new_tokens=MOST_TOKENS)
        return assemble("VisualRWKV 7.00", config, [*parts, *trio_parts(shapes)], stored)
    return _open_siglip(shapes, sizes, projector, parts)


def _open_siglip(
    shapes: Shapes, sizes: RWKV7Config, projector: GatedProjectorConfig | LinearProjectorConfig, parts: list[Part]
) -> Checkpoint:
    """7.01 to 7.04: a SigLIP2 reads the picture (7.01) or its tiles, and from 7.03 on their tokens are compressed."""
    stored = shapes.stored
    vision = "vit.vision_model." if shapes.holds("vit.vision_model.") else "vit."
    tower = siglip_config(shapes, vision, PUBLISHED)
    version = _version(shapes)
    compressor = None
    if version >= 3:
        compressor = CompressorConfig(shapes.depth("vtc.blocks."), COMPRESSED, per_tile=version == 4)
        parts = [*parts, blinkdl_part(stored.tensors, "vtc.", "compressor.")]
    tiling = None if version == 1 else Tiling(tower.preprocess.size, closest=version >= 3)
    config = MMConfig(sizes, tower, projector, max_new_tokens=MOST_TOKENS, tiling=tiling, compressor=compressor)
    return assemble(f"VisualRWKV 7.0{version}", config, [*parts, siglip_part(shapes, vision)], stored)


def _version(shapes: Shapes) -> int:
    """The last digit of the version: what the path says last that fits the tensors, or else the earlier one."""
    possible = (3, 4) if shapes.holds("vtc.") else (1, 2)
    named = map(int, re.findall(r"v070([1-4])", str(shapes.stored.path.absolute())))
    return [possible[0], *(version for version in named if version in possible)][-1]


def _projector(shapes: Shapes) -> GatedProjectorConfig | LinearProjectorConfig:
    if "proj.weight" in shapes.stored.tensors:
        return LinearProjectorConfig(shapes.of("proj.weight", 2)[1])
    return GatedProjectorConfig(shapes.of("proj.gate.weight", 2)[1])
