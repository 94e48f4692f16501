import pytest
import torch

from mm_rwkv7.projector import ProjectorConfig, build_projector


@torch.no_grad()
def test_equal_features_differ_by_row_and_column_alone() -> None:
    torch.manual_seed(0)
    projector = build_projector(ProjectorConfig(8, 16, positions=(2, 3), summary=True), 64)
    x = projector(torch.randn(1, 1, 8).expand(1, 6, 8))
    assert x.shape == (1, projector.tokens(6), 64)
    grid, summary = x[0, :6].view(2, 3, 64), x[0, 6]
    torch.testing.assert_close(grid[1] - grid[0], (grid[1] - grid[0])[:1].expand(3, 64))
    torch.testing.assert_close(grid[:, 2] - grid[:, 0], (grid[:, 2] - grid[:, 0])[:1].expand(2, 64))
    positions = grid - summary
    assert 0.2 < positions.std() / summary.std() < 1  # loud enough to be heard beside the features


def test_positions_need_the_towers_grid() -> None:
    projector = build_projector(ProjectorConfig(8, 16, positions=(2, 3)), 64)
    with pytest.raises(ValueError, match="2 x 3 cells, a picture has 4"):
        projector.tokens(4)
    with pytest.raises(ValueError, match=r"positions are \[6\]"):
        ProjectorConfig(8, 16, positions=(6,))
