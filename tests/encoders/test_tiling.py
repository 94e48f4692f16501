import random

import numpy as np
import pytest
from PIL import Image

from encoders.tiling import Tiling


@pytest.mark.parametrize(
    ("size", "least_waste", "closest"),
    [
        ((640, 480), (2, 1), (2, 2)),
        ((1024, 768), (4, 3), (4, 3)),
        ((3000, 1000), (12, 4), (12, 4)),
        ((300, 200), (1, 1), (1, 1)),
        ((512, 512), (1, 1), (2, 2)),
        ((513, 511), (2, 2), (2, 2)),
        ((100, 1000), (1, 3), (1, 3)),
    ],
)
def test_the_grid_is_that_of_visualrwkv(
    size: tuple[int, int], least_waste: tuple[int, int], closest: tuple[int, int]
) -> None:
    """Computed with `select_best_resolution` of VisualRWKV 7.02 and 7.03."""
    assert Tiling(256).grid(*size) == least_waste
    assert Tiling(256, closest=True).grid(*size) == closest


@pytest.mark.parametrize("seed", range(5))
def test_there_are_never_more_tiles_than_allowed(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(300):
        width, height, most = rng.randint(1, 5000), rng.randint(1, 5000), rng.randint(1, 12)
        tiling = Tiling(rng.choice([7, 64, 256, 448]), rng.random() < 0.5, most)
        columns, rows = tiling.grid(width, height)
        assert 1 <= columns * rows <= most, f"seed {seed}: {width} x {height}, {tiling}"


def test_the_bound_keeps_the_picture_s_shape() -> None:
    assert Tiling(256, most=6).grid(4000, 3000) == (3, 2)
    assert Tiling(256, most=6).grid(3000, 4000) == (2, 3)
    assert Tiling(256, most=9).grid(10000, 300) == (8, 1)


def test_tiles_lie_row_by_row_after_the_thumbnail() -> None:
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8))
    thumbnail, *tiles = Tiling(32, thumbnail=True).cut(picture)
    assert thumbnail is picture
    rows = [np.concatenate([np.asarray(tile) for tile in tiles[y * 3 : y * 3 + 3]], axis=1) for y in range(2)]
    assert np.array_equal(np.concatenate(rows), np.asarray(picture))  # of a size that needs no resizing


def test_a_small_picture_is_not_seen_twice() -> None:
    picture = Image.new("RGB", (20, 30))
    assert Tiling(32, thumbnail=True).cut(picture) == [picture]
    (tile,) = Tiling(32).cut(picture)
    assert tile.size == (32, 32)


@pytest.mark.parametrize("wrong", [{"side": 0}, {"side": 8, "most": 0}])
def test_impossible_tiles_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        Tiling(**wrong)
