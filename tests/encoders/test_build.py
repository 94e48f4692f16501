"""I pictures, S side, M tokens, E width."""

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.build import TowerConfig, build_tower
from encoders.concat import ConcatTowerConfig
from encoders.open_clip_tower import OpenClipTowerConfig
from encoders.protocol import Preprocess, Views, join
from encoders.sam import SamTowerConfig
from encoders.timm_tower import TimmTowerConfig
from encoders.transformers_tower import TransformersTowerConfig

GREY = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
CLIP = {"model_type": "clip_vision_model", "patch_size": 16, "hidden_size": 32, "num_hidden_layers": 2}
CLIP |= {"num_attention_heads": 2, "intermediate_size": 64}
OPEN_CLIP = {"embed_dim": 8, "vision_cfg": {"layers": 2, "width": 32, "head_width": 16, "patch_size": 16}}

DINO = TimmTowerConfig("vit_small_patch16_dinov3", 64, SMALL, layer=-2, norm=False)
SIGLIP = TransformersTowerConfig({**CLIP, "model_type": "siglip_vision_model"}, Preprocess(64, *GREY, "bilinear"))
SAM = SamTowerConfig(Preprocess(128, *GREY), options={**SMALL, "neck_chans": 8, "global_attn_indexes": [1]})
TRIO = ConcatTowerConfig((DINO, SIGLIP, SAM))
EACH = {
    "resnet": TimmTowerConfig("test_resnet", 32),
    "dino": DINO,
    "siglip": SIGLIP,
    "clip": TransformersTowerConfig(CLIP, Preprocess(32, *GREY), norm=False, class_token=True),
    "open_clip": OpenClipTowerConfig("tiny", Preprocess(32, *GREY), OPEN_CLIP),
    "sam": SAM,
    "trio": TRIO,
}


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@torch.no_grad()
@pytest.mark.parametrize("config", EACH.values(), ids=EACH)
def test_a_tower_without_memory_takes_a_checkpoint_s_weights(config: TowerConfig) -> None:
    filled = build_tower(config).eval()
    with torch.device("meta"):
        empty = build_tower(config).eval()
    assert all(parameter.is_meta for parameter in empty.parameters())
    empty.load_state_dict(filled.state_dict(), assign=True)
    pixels = filled.preprocess.pixels([noise(90, 70), noise(60, 80)])
    features = filled(pixels)
    assert features.shape == (2, filled.tokens, filled.width)
    assert torch.equal(empty(pixels), features)


@torch.no_grad()
def test_towers_side_by_side_give_what_each_gives_alone() -> None:
    trio = build_tower(TRIO).eval()
    assert (trio.grid, trio.tokens, trio.width) == ((4, 4), 16, 32 + 32 + 32)
    picture = noise(90, 70)
    alone = [tower(tower.preprocess.pixels([picture])) for tower in trio.towers]
    assert torch.equal(trio(trio.preprocess.pixels([picture])), torch.cat(alone, dim=-1))


def test_every_view_is_made_from_the_picture_itself() -> None:
    views = Views((Preprocess(64, *GREY), Preprocess(128, *GREY)))
    assert views.size == 128
    pictures = [noise(90, 70), noise(60, 80)]
    small, large = views.pixels(pictures)
    assert (small.shape, large.shape) == ((2, 3, 64, 64), (2, 3, 128, 128))
    assert torch.equal(large, Preprocess(128, *GREY).pixels(pictures))
    apart = [views.pixels([picture]) for picture in pictures]
    assert all(torch.equal(one, both) for one, both in zip(join(apart), (small, large), strict=True))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ConcatTowerConfig((DINO, EACH["clip"])), r"grids \[\(4, 4\), \(2, 2\)\]"),
        (TimmTowerConfig("vit_small_patch16_dinov3", 64, SMALL, layer=-9), "no layer -9"),
        (TransformersTowerConfig(CLIP, Preprocess(32, *GREY), layer=-3), "layer is -3"),
        (OpenClipTowerConfig("tiny", Preprocess(32, *GREY), OPEN_CLIP, layer=-3), "no layer -3"),
        (TimmTowerConfig("vit_small_patch16_dinov3", 64, SMALL, layer=1), "layer 1"),
        (OpenClipTowerConfig("ViT-of-Atlantis", Preprocess(32, *GREY)), "no model 'ViT-of-Atlantis'"),
    ],
)
def test_what_cannot_be_built_is_refused(config: TowerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tower(config)


def test_configs_that_mean_nothing_are_refused() -> None:
    for message, wrong in {
        "no towers": lambda: ConcatTowerConfig(()),
        "model_type 'bert'": lambda: TransformersTowerConfig({"model_type": "bert"}, Preprocess(32, *GREY)),
        "no class token": lambda: TransformersTowerConfig(
            {"model_type": "siglip_vision_model"}, Preprocess(32, *GREY), class_token=True
        ),
        "image size is 64": lambda: TimmTowerConfig("test_vit", 64, preprocess=Preprocess(32, *GREY)),
        "three numbers": lambda: Preprocess(32, (0.5,), (0.5,)),
        "at least 1 pixel": lambda: Preprocess(0, *GREY),
    }.items():
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.parametrize("config", [EACH["clip"], EACH["open_clip"]])
def test_weights_of_no_name_cannot_be_fetched(config: TowerConfig) -> None:
    with pytest.raises(ValueError, match="fetch"):
        build_tower(config, pretrained=True)


def test_the_wrong_number_of_views_is_refused() -> None:
    trio = build_tower(TRIO)
    pixels = trio.preprocess.pixels([noise(90, 70)])
    for wrong, given in ((pixels[0], 1), (pixels[:2], 2)):
        with pytest.raises(ValueError, match=rf"{given} views.*expected 3"):
            trio(wrong)


def test_a_preprocess_in_the_config_replaces_timm_s() -> None:
    assert build_tower(TimmTowerConfig("test_vit", 32)).preprocess == Preprocess(32, *GREY)
    asked = build_tower(
        TimmTowerConfig("test_vit", 32, preprocess=Preprocess(32, (0.2, 0.4, 0.6), GREY[1], "bilinear"))
    )
    assert asked.preprocess.interpolation == "bilinear"
    assert asked.mean.flatten().tolist() == pytest.approx([51, 102, 153])
