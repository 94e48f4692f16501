"""I pictures, S side, M tokens, E width."""

import dataclasses
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import SiglipConfig, SiglipModel

from encoders.build import TowerConfig, build_tower
from encoders.concat import ConcatTowerConfig
from encoders.open_clip_tower import OpenClipTowerConfig
from encoders.protocol import Preprocess, Views, join
from encoders.sam import SamTowerConfig
from encoders.timm_tower import TimmTowerConfig
from encoders.tower import Grid, Tower, map_tokens
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
@pytest.mark.parametrize("config", EACH.values(), ids=EACH)
def test_weights_of_half_precision_give_nearly_the_same(config: TowerConfig) -> None:
    tower = build_tower(config).eval()
    pixels = tower.preprocess.pixels([noise(90, 70)])
    expected = tower(pixels)
    weights = {name: weight.bfloat16() for name, weight in tower.state_dict().items() if weight.is_floating_point()}
    tower.load_state_dict(tower.state_dict() | weights, assign=True)
    assert (tower(pixels).float() - expected).norm() / expected.norm() < 0.05


def test_modules_of_other_threads_keep_their_memory() -> None:
    def make(pretrained: bool) -> nn.Module:
        with ThreadPoolExecutor() as pool:
            elsewhere.append(pool.submit(nn.Linear, 2, 2).result())
        return nn.Conv2d(3, 2, 1)

    class Plain(Tower):
        def read(self, body: nn.Module, pictures: Tensor) -> tuple[Tensor, Grid]:
            return map_tokens(body(pictures))

    elsewhere: list[nn.Linear] = []
    with torch.device("meta"):
        tower = Plain(Preprocess(4, *GREY), make, pretrained=False)
    assert tower.body.weight.is_meta
    assert not any(linear.weight.is_meta for linear in elsewhere)


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
        (SamTowerConfig(Preprocess(128, *GREY), name="local-dir:/somewhere"), "no model 'local-dir:/somewhere'"),
        (
            OpenClipTowerConfig(
                "tiny", Preprocess(32, *GREY), {"embed_dim": 8, "vision_cfg": {"timm_model_name": "hf-hub:timm/a"}}
            ),
            "no model 'hf-hub:timm/a'",
        ),
        (TimmTowerConfig("test_vit", 32, {"detph": 3}), "timm tower cannot be built.*detph"),
        (TimmTowerConfig("test_vit.of_atlantis", 32), "timm tower cannot be built.*of_atlantis"),
        (TransformersTowerConfig({**CLIP, "hidden_act": "x"}, Preprocess(32, *GREY)), "transformers tower.*KeyError"),
        (TransformersTowerConfig({**CLIP, "patch_size": 0}, Preprocess(32, *GREY)), "tower.*ZeroDivisionError"),
        (OpenClipTowerConfig("ViT-of-Atlantis", Preprocess(32, *GREY)), "no model 'ViT-of-Atlantis'"),
    ],
)
def test_what_cannot_be_built_is_refused(config: TowerConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_tower(config)


@pytest.mark.parametrize(
    "option",
    ["cache_dir", "checkpoint_path", "features_only", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay"],
)
def test_a_config_cannot_make_timm_read_other_files(option: str) -> None:
    for wrong in (
        lambda: TimmTowerConfig("test_vit", 32, {option: "elsewhere"}),
        lambda: SamTowerConfig(Preprocess(128, *GREY), options={option: "elsewhere"}),
    ):
        with pytest.raises(ValueError, match=f"options set {option}"):
            wrong()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal"])
def test_a_config_cannot_name_the_code_of_the_attention(key: str) -> None:
    with pytest.raises(ValueError, match=f"vision config sets {key}"):
        TransformersTowerConfig({**CLIP, key: "kernels-community/flash-attn"}, Preprocess(32, *GREY))


def test_configs_that_mean_nothing_are_refused() -> None:
    for message, wrong in {
        "no towers": lambda: ConcatTowerConfig(()),
        "model_type 'bert'": lambda: TransformersTowerConfig({"model_type": "bert"}, Preprocess(32, *GREY)),
        "no class token": lambda: TransformersTowerConfig(
            {"model_type": "siglip_vision_model"}, Preprocess(32, *GREY), class_token=True
        ),
        "image size is 64": lambda: TimmTowerConfig("test_vit", 64, preprocess=Preprocess(32, *GREY)),
        "three numbers": lambda: Preprocess(32, (0.5,), (0.5,)),
        "std is": lambda: Preprocess(32, (0.5, 0.5, 0.5), (0.5, 0.0, 0.5)),
        "unshuffle is 0": lambda: SamTowerConfig(Preprocess(128, *GREY), unshuffle=0),
        "at least 1 pixel": lambda: Preprocess(0, *GREY),
    }.items():
        with pytest.raises(ValueError, match=message):
            wrong()


@pytest.mark.parametrize("config", [EACH["clip"], EACH["open_clip"]])
def test_weights_of_no_name_cannot_be_fetched(config: TowerConfig) -> None:
    with pytest.raises(ValueError, match="fetch"):
        build_tower(config, pretrained=True)


@torch.no_grad()
def test_published_weights_are_fetched_by_name(tmp_path: Path) -> None:
    """Here from a folder, which both libraries read like a repository."""
    vision = SIGLIP.vision | {"image_size": 64}
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    whole = SiglipModel(SiglipConfig(text_config=text | {"vocab_size": 9}, vision_config=vision))
    whole.save_pretrained(tmp_path / "siglip")
    tower = build_tower(dataclasses.replace(SIGLIP, name=str(tmp_path / "siglip")), pretrained=True)
    for name, tensor in whole.vision_model.state_dict().items():
        assert torch.equal(tower.body.state_dict()[name], tensor), name

    wider = {**vision, "intermediate_size": 96, "num_hidden_layers": 3}
    config = TransformersTowerConfig(wider, SIGLIP.preprocess, name=str(tmp_path / "siglip"))
    with pytest.raises(
        ValueError, match=r"missing .*layers\.2\.mlp.*layers\.0\.mlp\.fc1\.bias has shape \(64,\), expected \(96,\)"
    ):
        build_tower(config, pretrained=True)

    model = OPEN_CLIP | {"text_cfg": {"vocab_size": 9, "width": 8, "heads": 1, "layers": 1}}
    folder = tmp_path / "clip"
    folder.mkdir()
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model}))
    sizes = {**model["vision_cfg"], "image_size": 32}
    clip = open_clip.CLIP(8, sizes, model["text_cfg"])
    torch.save(clip.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = OpenClipTowerConfig(f"local-dir:{folder}", Preprocess(32, *GREY), model)
    tower = build_tower(config, pretrained=True)
    for name, tensor in clip.visual.state_dict().items():
        assert torch.equal(tower.body.state_dict()[name], tensor), name


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
