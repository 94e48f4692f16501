"""The same random weights through two libraries give the same features. Letters: I pictures, S side, M tokens, E width.

Weights begin in transformers; `timm_names` and `open_clip_names` carry them over.
"""

import re
from collections.abc import Mapping
from typing import Any

import open_clip
import pytest
import timm
import torch
import transformers
from torch import Tensor, nn

from encoders import open_clip_tower, sam, transformers_tower
from encoders.open_clip_tower import OpenClipTower, OpenClipTowerConfig
from encoders.protocol import Preprocess
from encoders.sam import SamTower, SamTowerConfig
from encoders.timm_tower import TimmTower, TimmTowerConfig
from encoders.tower import Tower
from encoders.transformers_tower import TransformersTower, TransformersTowerConfig

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
SIZES = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 128}
TIMM_SIZES = {"embed_dim": 32, "depth": 3, "num_heads": 2}
READINGS = [(-1, True), (-1, False), (-2, False), (-2, True)]  # layer, norm
SEED = 0

TIMM_RULES = (
    (r"^vision_(encoder|model)\.", ""),
    (r"^(embeddings\.)?patch_embed(ding)?s?(\.projection)?\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings?(\.weight)?", "pos_embed"),
    (r"^embeddings\.class_embedding", "embeddings.cls_token"),
    (r"^embeddings\.register_tokens", "embeddings.reg_token"),
    (r"^embeddings\.", ""),
    (r"^((encoder|model)\.)?layers?\.", "blocks."),
    (r"^neck\.conv1", "neck.0"),
    (r"^neck\.layer_norm1", "neck.1"),
    (r"^neck\.conv2", "neck.2"),
    (r"^neck\.layer_norm2", "neck.3"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"\.(self_attn|attention)\.", ".attn."),
    (r"attn\.(out|o)_proj", "attn.proj"),
    (r"mlp\.(lin1|up_proj)", "mlp.fc1"),
    (r"mlp\.(lin2|down_proj)", "mlp.fc2"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^pre_layrnorm", "norm_pre"),
    (r"^(post_layernorm|layernorm)\.", "norm."),
)
OPEN_CLIP_RULES = (
    (r"^cls_token", "class_embedding"),
    (r"^pos_embed", "positional_embedding"),
    (r"^patch_embed\.proj", "conv1"),
    (r"^norm_pre", "ln_pre"),
    (r"^norm\.", "ln_post."),
    (r"^blocks", "transformer.resblocks"),
    (r"attn\.qkv\.", "attn.in_proj_"),
    (r"attn\.proj", "attn.out_proj"),
    (r"\.norm(\d)", r".ln_\1"),
    (r"mlp\.fc1", "mlp.c_fc"),
    (r"mlp\.fc2", "mlp.c_proj"),
)


def renamed(tensors: Mapping[str, Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, Tensor]:
    result = {}
    for name, tensor in tensors.items():
        for pattern, new in rules:
            name = re.sub(pattern, new, name)
        result[name] = tensor
    return result


def timm_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Without the pooling head and the mask token, q, k and v as one matrix."""
    kept = {name: tensor for name, tensor in tensors.items() if not re.search(r"^head\.|mask_token", name)}
    result = renamed(kept, TIMM_RULES)
    for name in [name for name in result if ".q_proj." in name]:
        parts = [result.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
        result[name.replace("q_proj", "qkv")] = torch.cat(parts)
    return result


def load(body: nn.Module, tensors: Mapping[str, Tensor], unread: str = "^$") -> None:
    """Every weight of `body` but those that no feature reads; vectors may have other leading axes."""
    wanted = body.state_dict()
    assert set(tensors) <= set(wanted)
    assert all(re.search(unread, name) for name in set(wanted) - set(tensors))
    shaped = {name: tensor.reshape(wanted[name].shape) for name, tensor in tensors.items()}
    body.load_state_dict(shaped, strict=False)


@torch.no_grad()
def randomise(module: nn.Module) -> nn.Module:
    """Every weight counts: layer scales of 1e-5 and biases of 0 would hide an error, and large inputs that of a norm's
    epsilon."""
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator) * (0.004 if "embed" in name else 0.2)
        parameter.copy_(noise + 1 if "norm" in name and name.endswith("weight") else noise)
    return module.eval()


def pictures(size: int) -> tuple[Tensor, Tensor]:
    """(I, 3, S, S) uint8 and the same normalised."""
    pixels = torch.randint(256, (2, 3, size, size), generator=torch.Generator().manual_seed(SEED), dtype=torch.uint8)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return pixels, (pixels / 255 - mean) / std


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert found.std() > 0.1
    assert (found - expected).norm() / expected.norm() < 1e-5, f"seed {SEED}"


def hidden_states(model: nn.Module, size: int, layer: int, norm: str | None, prefix: int) -> Tensor:
    features = model(pixel_values=pictures(size)[1], output_hidden_states=True).hidden_states[layer]
    return (getattr(model, norm)(features) if norm else features)[:, prefix:]


def preprocess(size: int) -> Preprocess:
    return Preprocess(size, MEAN, STD)


def timm_tower(name: str, size: int, layer: int, norm: bool, **options: Any) -> TimmTower:
    config = TimmTowerConfig(name, size, {**TIMM_SIZES, **options}, layer, norm, preprocess(size))
    return TimmTower(config).eval()


def transformers_tower_of(model_type: str, size: int, layer: int = -1, norm: bool = True, **more: Any) -> Tower:
    """With random weights that came from a file's names, `vision_model.` in front."""
    class_token = more.pop("class_token", False)
    config = TransformersTowerConfig(
        {"model_type": model_type, "patch_size": 16, **SIZES, **more}, preprocess(size), layer, norm, class_token
    )
    tower = TransformersTower(config).eval()
    file = {f"vision_model.{name}": tensor for name, tensor in randomise(tower.body).state_dict().items()}
    file["vision_model.embeddings.position_ids"] = torch.arange(3)  # as old files have it
    named = {transformers_tower.own_name(name): tensor for name, tensor in file.items()}
    named.pop(None)
    fresh = TransformersTower(config).eval()
    fresh.load_state_dict(named)
    return fresh


@torch.no_grad()
@pytest.mark.parametrize(("layer", "norm"), READINGS)
def test_siglip_in_transformers_timm_and_open_clip(layer: int, norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = transformers_tower_of("siglip_vision_model", 64, layer, norm, hidden_act="gelu")
    pixels, _ = pictures(64)
    expected = hidden_states(ours.body, 64, layer, "post_layernorm" if norm else None, 0)
    assert_same(ours(pixels), expected)
    if (layer, norm) == (-1, True):
        assert_same(ours(pixels), ours.body(pictures(64)[1]).last_hidden_state)

    tensors = timm_names(ours.body.state_dict())
    other = timm_tower("vit_base_patch16_siglip_224", 64, layer, norm)
    load(other.body, tensors, unread="^attn_pool")
    assert_same(other(pixels), expected)

    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, **options: create(name, **TIMM_SIZES, **options))
    model = open_clip.get_model_config("ViT-B-16-SigLIP")
    third = OpenClipTower(OpenClipTowerConfig("tiny", preprocess(64), model, layer=layer, norm=norm)).eval()
    file = {f"visual.trunk.{name}": tensor for name, tensor in tensors.items()}
    named = {open_clip_tower.own_name(name).removeprefix("body."): tensor for name, tensor in file.items()}
    load(third.body, named, unread="attn_pool")
    assert_same(third(pixels), expected)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "norm"), READINGS)
def test_clip_in_transformers_timm_and_open_clip(layer: int, norm: bool) -> None:
    ours = transformers_tower_of("clip_vision_model", 64, layer, norm)
    pixels, _ = pictures(64)
    expected = hidden_states(ours.body, 64, layer, "post_layernorm" if norm else None, 1)
    assert_same(ours(pixels), expected)

    tensors = timm_names(ours.body.state_dict())
    other = timm_tower("vit_base_patch16_clip_quickgelu_224", 64, layer, norm)
    load(other.body, tensors)
    assert_same(other(pixels), expected)

    vision = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 16}
    model = {"embed_dim": 8, "quick_gelu": True, "vision_cfg": vision}
    third = OpenClipTower(OpenClipTowerConfig("tiny", preprocess(64), model, layer=layer, norm=norm)).eval()
    load(third.body, renamed(tensors, OPEN_CLIP_RULES), unread="^proj$")
    assert_same(third(pixels), expected)


@torch.no_grad()
def test_clip_with_its_class_token_is_the_last_hidden_state() -> None:
    ours = transformers_tower_of("clip_vision_model", 64, norm=False, class_token=True)
    assert (ours.grid, ours.tokens) == ((4, 4), 17)
    assert_same(ours(pictures(64)[0]), ours.body(pictures(64)[1]).last_hidden_state)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "norm"), READINGS)
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_in_transformers_and_timm(registers: int, layer: int, norm: bool) -> None:
    classes = (transformers.Dinov2Config, transformers.Dinov2Model)
    name = "vit_base_patch14_dinov2"
    if registers:
        classes = (transformers.Dinov2WithRegistersConfig, transformers.Dinov2WithRegistersModel)
        name = "vit_base_patch14_reg4_dinov2"
    config = classes[0](**SIZES, patch_size=14, image_size=56)
    other = randomise(classes[1](config))
    expected = hidden_states(other, 56, layer, "layernorm" if norm else None, 1 + registers)

    tensors = timm_names(other.state_dict())
    if registers:  # timm keeps the class token's position in the token
        positions = tensors["pos_embed"]
        tensors["cls_token"] = tensors["cls_token"] + positions[:, :1]
        tensors["pos_embed"] = positions[:, 1:]
    ours = timm_tower(name, 56, layer, norm)
    load(ours.body, tensors)
    assert_same(ours(pictures(56)[0]), expected)


@torch.no_grad()
@pytest.mark.parametrize(("layer", "norm"), READINGS)
def test_dinov3_in_transformers_and_timm(layer: int, norm: bool) -> None:
    config = transformers.DINOv3ViTConfig(
        **SIZES, patch_size=16, image_size=64, num_register_tokens=4, query_bias=False, value_bias=False
    )
    other = randomise(transformers.DINOv3ViTModel(config))
    expected = hidden_states(other, 64, layer, "norm" if norm else None, 5)
    tensors = timm_names(other.state_dict())
    tensors = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", name): tensor for name, tensor in tensors.items()}
    ours = timm_tower("vit_small_patch16_dinov3", 64, layer, norm)
    load(ours.body, tensors)
    assert_same(ours(pictures(64)[0]), expected)


@torch.no_grad()
@pytest.mark.parametrize("unshuffle", [1, 2])
def test_sam_in_transformers_and_timm(unshuffle: int) -> None:
    size = 16 * 16  # beyond a window of 14 cells, so that windows are cut and padded
    config = transformers.SamVisionConfig(
        **SIZES, mlp_dim=128, image_size=size, output_channels=8, global_attn_indexes=[1], window_size=14
    )
    other = randomise(transformers.SamVisionModel(config))
    expected = other(pictures(size)[1]).last_hidden_state
    if unshuffle == 2:  # as LosslessDownSampler of VisualRWKV: channel c * 4 + dy * 2 + dx
        expected = torch.stack([expected[..., dy::2, dx::2] for dy in (0, 1) for dx in (0, 1)], dim=2).flatten(1, 2)

    options = {**TIMM_SIZES, "neck_chans": 8, "global_attn_indexes": [1]}
    ours = SamTower(SamTowerConfig(preprocess(size), unshuffle, options=options)).eval()
    file = {
        f"image_encoder.{re.sub('mlp.fc', 'mlp.lin', name)}": tensor
        for name, tensor in timm_names(other.state_dict()).items()
    }
    ours.load_state_dict({sam.own_name(name): tensor for name, tensor in file.items()})
    assert (ours.grid, ours.width) == ((16 // unshuffle, 16 // unshuffle), 8 * unshuffle**2)
    assert_same(ours(pictures(size)[0]), expected.flatten(2).transpose(1, 2))
