import dataclasses

import pytest
import torch
from PIL import Image
from torch import Tensor

from encoders.concat import ConcatTowerConfig
from encoders.protocol import Preprocess
from encoders.tiling import Tiling
from encoders.timm_tower import TimmTowerConfig
from encoders.transformers_tower import TransformersTowerConfig
from mm_rwkv7.config import MMConfig
from mm_rwkv7.initialisation import initialise
from mm_rwkv7.model import MMRWKV7
from mm_rwkv7.pipeline import Pipeline
from mm_rwkv7.projector import ProjectorConfig
from mm_rwkv7.rwkv7 import RWKV7Config
from mm_rwkv7.tokenizer import IMAGE_TOKEN


@pytest.fixture
def pixels(tiny_model: MMRWKV7) -> Tensor:
    side = tiny_model.tower.preprocess.size
    return torch.randint(256, (2, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def prompt(model: MMRWKV7, *pictures: int) -> Tensor:
    """ids (1, T) with runs of placeholders of these lengths between words."""
    ids = [3]
    for length in pictures:
        ids += [model.config.image_id] * length + [5, 6]
    return torch.tensor([ids])


@torch.no_grad()
def test_features_take_the_places_of_their_placeholders(tiny_model: MMRWKV7, pixels: Tensor) -> None:
    M = tiny_model.image_tokens
    ids = prompt(tiny_model, M, M)
    features = tiny_model.encode(pixels)
    assert features.shape == (2, M, tiny_model.config.lm.width)
    x = tiny_model.embed(ids, features)[0]
    assert torch.equal(x[1 : 1 + M], features[0])
    assert torch.equal(x[3 + M : 3 + 2 * M], features[1])
    words = ids[0] != tiny_model.config.image_id
    assert torch.equal(x[words], tiny_model.lm.embed(ids[0, words]))


@torch.no_grad()
def test_pictures_go_to_their_rows(tiny_model: MMRWKV7, pixels: Tensor) -> None:
    M = tiny_model.image_tokens
    rows = torch.cat([prompt(tiny_model, M), prompt(tiny_model, M)])
    both, _ = tiny_model(rows, pixels=pixels)
    for i in range(2):
        alone, _ = tiny_model(rows[i : i + 1], pixels=pixels[i : i + 1])
        assert torch.allclose(both[i], alone[0], rtol=1e-4, atol=1e-4)
    assert not torch.allclose(both[0], both[1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize(("placeholders", "pictures"), [(3, 2), (0, 1), (5, 0)])
def test_placeholders_and_features_must_agree_in_number(
    tiny_model: MMRWKV7, pixels: Tensor, placeholders: int, pictures: int
) -> None:
    features = tiny_model.encode(pixels[:pictures]) if pictures else None
    given = pictures * tiny_model.image_tokens
    with pytest.raises(ValueError, match=rf"\b{placeholders} image placeholders.*\b{given} feature tokens"):
        tiny_model.embed(prompt(tiny_model, placeholders), features)


def test_gradients_flow_through_the_picture_to_the_projector(tiny_model: MMRWKV7, pixels: Tensor) -> None:
    logits, _ = tiny_model(prompt(tiny_model, tiny_model.image_tokens), pixels=pixels[:1])
    parameters = dict(tiny_model.projector.named_parameters())
    gradients = torch.autograd.grad(logits[0, -1].square().sum(), list(parameters.values()))
    for name, gradient in zip(parameters, gradients, strict=True):
        assert gradient.any(), name


@torch.no_grad()
def test_one_prompt_in_two_calls(tiny_model: MMRWKV7, pixels: Tensor) -> None:
    ids = prompt(tiny_model, tiny_model.image_tokens)
    whole, _ = tiny_model(ids, pixels=pixels[:1])
    _, state = tiny_model(ids[:, :-2], pixels=pixels[:1])
    rest, _ = tiny_model(ids[:, -2:], state)
    assert torch.allclose(rest, whole[:, -2:], rtol=1e-4, atol=1e-4)


def test_a_model_without_a_tower_reads_text_only() -> None:
    lm = RWKV7Config(IMAGE_TOKEN + 1, 16, 1, 16, decay_rank=2, iclr_rank=2, value_rank=2, gate_rank=2)
    model = MMRWKV7(MMConfig(lm))
    assert model.image_tokens == 0
    with pytest.raises(ValueError, match="no tower"):
        model.encode(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_a_projector_of_another_width_is_refused(tiny_model: MMRWKV7) -> None:
    config = dataclasses.replace(
        tiny_model.config, tower=TimmTowerConfig("test_resnet", 32), projector=ProjectorConfig(17, 8)
    )
    with pytest.raises(ValueError, match=r"width 17.*the timm tower gives 96"):
        MMRWKV7(config)


@torch.no_grad()
def test_a_pooled_picture_is_the_mean_of_neighbouring_cells(tiny_model: MMRWKV7) -> None:
    config = dataclasses.replace(tiny_model.config, tower=TimmTowerConfig("test_vit", 96), pool=(3, 2))
    model = MMRWKV7(config).eval()
    model.projector = torch.nn.Identity()
    picture = torch.randint(256, (2, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cells = model.tower(picture).view(2, 3, 2, 2, 3, -1)  # 6 x 6 cells in 3 x 2 blocks of 2 x 3
    assert model.encode(picture).shape == (2, 6, 64)
    assert torch.allclose(model.encode(picture), cells.mean((2, 4)).flatten(1, 2), atol=1e-6)


def test_a_grid_that_cannot_be_pooled_is_refused(tiny_model: MMRWKV7) -> None:
    with pytest.raises(ValueError, match="2 x 2 cannot be pooled to 3 x 1"):
        MMRWKV7(dataclasses.replace(tiny_model.config, pool=(3, 1)))
    clip = {"model_type": "clip_vision_model", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    preprocess = Preprocess(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    tower = TransformersTowerConfig(clip, preprocess, class_token=True)
    with pytest.raises(ValueError, match="5 tokens, which are not the 2 x 2 cells"):
        MMRWKV7(dataclasses.replace(tiny_model.config, tower=tower, projector=ProjectorConfig(32, 8), pool=(1, 1)))


@torch.no_grad()
def test_towers_side_by_side_see_through_the_pipeline(tiny_model: MMRWKV7) -> None:
    preprocess = Preprocess(64, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    towers = ConcatTowerConfig(
        (TimmTowerConfig("test_vit", 32), TimmTowerConfig("test_vit", 64, preprocess=preprocess))
    )
    config = dataclasses.replace(
        tiny_model.config, tower=towers, projector=ProjectorConfig(128, 8), tiling=Tiling(40, thumbnail=True)
    )
    with pytest.raises(ValueError, match=r"grids \[\(2, 2\), \(4, 4\)\]"):
        MMRWKV7(config)
    stride = {"patch_size": 32}
    even = dataclasses.replace(towers.towers[1], options=stride)
    config = dataclasses.replace(config, tower=dataclasses.replace(towers, towers=(towers.towers[0], even)))
    model = MMRWKV7(config)
    initialise(model.lm)
    pipeline = Pipeline(model)
    answer = pipeline.ask("What is it?", [Image.new("RGB", (70, 30), "red")])
    assert answer.usage.media_tokens == 3 * 4  # the thumbnail and two tiles
