"""B batch, S side of the picture, M cells of the grid, D width."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from encoders.timm_tower import TimmTower, TimmTowerConfig

NAMES = ("test_resnet", "test_vit")


def tower(name: str, size: int, **options: object) -> TimmTower:
    torch.manual_seed(0)
    return TimmTower(TimmTowerConfig(name, size, options)).eval()


def noise(size: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


def as_pixels(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_features_equal_those_of_timm_s_own_pipeline(name: str) -> None:
    ours = tower(name, 96)
    data = resolve_model_data_config(ours.body) | {"input_size": (3, 96, 96), "crop_pct": 1.0}
    transform = create_transform(**data)
    expected = ours.body.forward_features(transform(noise(96))[None])
    expected = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected[:, ours.body.num_prefix_tokens :]
    found = ours(as_pixels(noise(96)))
    assert found.shape == (1, ours.grid[0] * ours.grid[1], ours.width)
    assert (found - expected).norm() / expected.norm() < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_cells_lie_row_by_row(name: str) -> None:
    """A change inside one cell of the picture changes the features of that cell most."""
    ours = tower(name, 160)
    if name == "test_vit":
        ours.body.blocks = nn.Identity()  # what mixes the cells
    rows, columns = ours.grid
    before = noise(160)
    for row, column in ((0, columns - 1), (rows - 1, 0), (1, 2)):
        high, wide = 160 // rows, 160 // columns
        after = as_pixels(before)
        after[..., row * high : (row + 1) * high, column * wide : (column + 1) * wide] = 0
        change = (ours(after) - ours(as_pixels(before))).norm(dim=-1)[0]
        assert change.argmax() == row * columns + column
        if name == "test_vit":
            assert int((change > 0).sum()) == 1


@torch.no_grad()
def test_a_finer_stride_gives_more_cells() -> None:
    assert tower("test_resnet", 96).grid == (3, 3)
    finer = tower("test_resnet", 96, output_stride=16)
    assert finer.grid == (6, 6)
    assert finer(as_pixels(noise(96))).shape == (1, 36, finer.width)


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_of_another_size_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"\(1, 3, 64, 64\), expected \(I, 3, 96, 96\)"):
        tower(name, 96)(as_pixels(noise(64)))


def test_an_unknown_model_is_refused() -> None:
    with pytest.raises(ValueError, match="no model 'resnet_of_atlantis'"):
        tower("resnet_of_atlantis", 96)


def test_a_checkpoint_holds_nothing_but_timm_s_own_tensors() -> None:
    ours = tower("test_vit", 96)
    own = timm.create_model("test_vit", num_classes=0, img_size=96).state_dict()
    found = {name.removeprefix("body."): tensor.shape for name, tensor in ours.state_dict().items()}
    assert found == {name: tensor.shape for name, tensor in own.items()}
