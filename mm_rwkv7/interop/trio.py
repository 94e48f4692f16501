"""VisualRWKV 7.00's three towers side by side, their sizes told by a file's shapes: DINOv2 | SigLIP | SAM."""

import math
from typing import Any

from encoders.concat import ConcatTowerConfig
from encoders.protocol import Preprocess
from encoders.sam import SamTowerConfig
from encoders.sam import own_name as sam_name
from encoders.timm_tower import TimmTowerConfig
from mm_rwkv7.interop.parts import Part, Shapes, renamed_part
from mm_rwkv7.interop.siglip import HALF

DINO, SIGLIP, SAM = (f"vit.{name}_featurizer." for name in ("dino", "siglip", "sam"))
NAMES = {DINO: "vit_large_patch14_reg4_dinov2.lvd142m", SIGLIP: "vit_so400m_patch14_siglip_384"}
HEAD_SIZES = {DINO: 64, SIGLIP: 72, SAM: 64}
SIDES = {DINO: 448, SIGLIP: 448, SAM: 1024}  # of a picture in pixels, where the file leaves the towers out
WIDTH = 3200
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def trio_config(shapes: Shapes) -> ConcatTowerConfig:
    """Each tower looks at the picture squashed to its size. DINOv2 and SigLIP are read at the last block but one,
    without the final norm. SAM is given ImageNet's mean and deviation, as in the original."""
    held = shapes.holds("vit.")
    sides = {tower: _side(shapes, tower) if held else side for tower, side in SIDES.items()}
    options = {tower: _options(shapes, tower) if held else {} for tower in SIDES}
    statistics = {DINO: IMAGENET, SIGLIP: (HALF, HALF)}
    dino, siglip = (
        TimmTowerConfig(name, sides[tower], options[tower], -2, False, Preprocess(sides[tower], *statistics[tower]))
        for tower, name in NAMES.items()
    )
    return ConcatTowerConfig((dino, siglip, SamTowerConfig(Preprocess(sides[SAM], *IMAGENET), options=options[SAM])))


def trio_parts(shapes: Shapes) -> list[Part]:
    """The towers' tensors as those of `MMRWKV7.tower`."""
    tensors = shapes.stored.tensors
    timm = [
        renamed_part(tensors, tower, f"tower.towers.{i}.", "body.{}".format, lambda name: name.removeprefix("body."))
        for i, tower in enumerate((DINO, SIGLIP))
    ]
    return [*timm, renamed_part(tensors, SAM, "tower.towers.2.", sam_name, _sam_spelling)]


def _sam_spelling(name: str) -> str:
    return name.removeprefix("body.").replace(".mlp.fc", ".mlp.lin")


def _side(shapes: Shapes, tower: str) -> int:
    patch = shapes.of(f"{tower}patch_embed.proj.weight", 4)[2]
    if tower == SAM:
        return shapes.of(f"{tower}pos_embed", 4)[1] * patch
    return math.isqrt(shapes.of(f"{tower}pos_embed", 3)[1]) * patch


def _options(shapes: Shapes, tower: str) -> dict[str, Any]:
    """timm's arguments for a tower of these sizes."""
    width = shapes.of(f"{tower}patch_embed.proj.weight", 4)[0]
    depth = shapes.depth(f"{tower}blocks.")
    first = "mlp.lin1" if tower == SAM else "mlp.fc1"
    hidden = shapes.of(f"{tower}blocks.0.{first}.weight", 2)[0]
    options: dict[str, Any] = {
        "embed_dim": width,
        "depth": depth,
        "num_heads": width // HEAD_SIZES[tower],
        "mlp_ratio": (hidden + 0.5) / width,  # timm cuts the product to a whole number
    }
    if tower != SAM:
        return options
    reach = [shapes.of(f"{tower}blocks.{i}.attn.rel_pos_h", 2)[0] for i in range(depth)]  # 2 * window - 1
    everywhere = 2 * shapes.of(f"{tower}pos_embed", 4)[1] - 1
    windows = [(positions + 1) // 2 for positions in reach if positions != everywhere]
    options["global_attn_indexes"] = [i for i, positions in enumerate(reach) if positions == everywhere]
    options["window_size"] = windows[0] if windows else 14
    options["neck_chans"] = shapes.of(f"{tower}neck.0.weight", 4)[0]
    return options
