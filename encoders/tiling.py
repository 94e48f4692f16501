"""Large pictures cut into tiles, each of which a tower reads like a picture of its own.

The grid of tiles is chosen as VisualRWKV 7.02 to 7.04 choose it (their `image_to_regions`).
"""

import math
from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class Tiling:
    """`side` is that of a tile in pixels. Of the grids around the picture's size the one is taken that leaves least of
    it empty when the picture is fitted in (7.02), or with `closest` that is also near to the picture's own area (7.03,
    7.04).

    `most` bounds the number of tiles; without it a large picture has hundreds. With `thumbnail` the whole picture comes
    before its tiles, and alone where one tile would do.
    """

    side: int
    closest: bool = False
    most: int | None = None
    thumbnail: bool = False

    def __post_init__(self) -> None:
        if self.side < 1 or (self.most is not None and self.most < 1):
            raise ValueError(f"tiles have side {self.side} and there may be {self.most}, expected at least 1 of each")

    def cut(self, image: Image.Image) -> list[Image.Image]:
        """The thumbnail if wanted, then the tiles row by row, of a picture that is squashed to fill their grid."""
        columns, rows = self.grid(*image.size)
        if self.thumbnail and columns * rows == 1:
            return [image]
        side = self.side
        filled = image.resize((columns * side, rows * side), Image.Resampling.LANCZOS)
        tiles = [
            filled.crop((x * side, y * side, (x + 1) * side, (y + 1) * side))
            for y in range(rows)
            for x in range(columns)
        ]
        return [image, *tiles] if self.thumbnail else tiles

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of tiles for a picture of so many pixels."""
        most = self.most or math.inf
        shrink = min(1.0, math.sqrt(most * self.side**2 / (width * height)))
        width, height = max(1, int(width * shrink)), max(1, int(height * shrink))
        columns, rows = (int(min(math.ceil(length / self.side), most)) for length in (width, height))
        grids = [
            (c, r)
            for c in range(max(1, columns - 1), columns + 1)
            for r in range(max(1, rows - 1), rows + 1)
            if c * r <= most
        ]
        return min(grids, key=lambda grid: self._waste(grid, width, height))

    def _waste(self, grid: tuple[int, int], width: int, height: int) -> int:
        """Pixels of the grid that stay empty when the picture is fitted in."""
        across, down = (tiles * self.side for tiles in grid)
        scale = min(across / width, down / height)
        waste = abs(across * down - int(width * scale) * int(height * scale))
        return waste + abs(across * down - width * height) if self.closest else waste
