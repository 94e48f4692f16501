"""Fewer tokens for a picture: neighbouring cells of a tower's grid are averaged.

Letters: I pictures, M tokens, E width of the features.
"""

from torch import Tensor
from torch.nn import functional as F


def pool_grid(features: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """features (I, M, E) of the cells of `grid`, row by row -> those of the coarser grid `to`."""
    maps = features.transpose(1, 2).unflatten(2, grid)  # (I, E, rows, columns)
    return F.adaptive_avg_pool2d(maps, to).flatten(2).transpose(1, 2)
