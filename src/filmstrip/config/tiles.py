"""Any-resolution images of LLaVA-NeXT: which grid of tiles an image is laid on, and what of it is picture.

Pure functions on integers, shared by the prompt's planning (how many tokens?), the pixels (where to cut?) and the model
(which patches are padding?), so that the three cannot disagree. Equations and order of rounding are those of
transformers (`select_best_resolution`, `get_patch_output_size`, `unpad_image`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

Size = tuple[int, int]
"""(height, width)."""


@dataclass(frozen=True)
class Tiling:
    """An image of `image` pixels on a grid of `rows` by `columns` square tiles of `tile` pixels a side.

    The image is scaled to `scaled` pixels, which touch two opposite edges of the grid, and centred; the rest is
    padding. Tiles go row by row. Before them goes the base tile: the whole image squeezed into one square.
    """

    image: Size
    rows: int
    columns: int
    tile: int
    scaled: Size

    @property
    def num_tiles(self) -> int:
        """The base tile and those of the grid."""
        return 1 + self.rows * self.columns

    @property
    def grid(self) -> Size:
        """Size of the grid in pixels."""
        return self.rows * self.tile, self.columns * self.tile

    @property
    def offset(self) -> Size:
        """Pixels of padding above and left of the scaled image (the odd one goes below and right)."""
        return (self.grid[0] - self.scaled[0]) // 2, (self.grid[1] - self.scaled[1]) // 2

    def picture_patches(self, per_side: int) -> tuple[slice, slice]:
        """Rows and columns of the grid's patches that are picture, with `per_side` patches along a tile's edge.

        Worked out from the image's proportions, not from `scaled`, and rounded inwards: a patch that is padding in part
        may count as picture or not, as in transformers.
        """
        height, width = self.image
        rows, columns = self.rows * per_side, self.columns * per_side
        if width / height > columns / rows:
            padding = (rows - int(round(height * (columns / width), 7))) // 2
            return slice(padding, rows - padding), slice(0, columns)
        padding = (columns - int(round(width * (rows / height), 7))) // 2
        return slice(0, rows), slice(padding, columns - padding)

    def num_patches(self, per_side: int) -> Size:
        """How many rows and columns of patches are picture."""
        rows, columns = self.picture_patches(per_side)
        return rows.stop - rows.start, columns.stop - columns.start


def tile_image(image: Size, grids: Sequence[Size], tile: int) -> Tiling:
    """Choose the grid for an image of `image` (height, width) pixels and say how it lies on it.

    `grids` are (height, width) in pixels, each a multiple of `tile`.
    """
    grid = best_grid(image, grids)
    return Tiling(image, grid[0] // tile, grid[1] // tile, tile, scaled_size(image, grid))


def best_grid(image: Size, grids: Sequence[Size]) -> Size:
    """The grid on which most of the image's own resolution survives; among equals the least padded, then the first."""
    height, width = image

    def merit(grid: Size) -> tuple[int, int]:
        scale = min(grid[1] / width, grid[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - grid[0] * grid[1]

    return max(grids, key=merit)


def scaled_size(image: Size, grid: Size) -> Size:
    """(height, width) of the image scaled to fit the grid, proportions kept, fractions of a pixel rounded up."""
    height, width = image
    across, down = grid[1] / width, grid[0] / height
    if across < down:
        return min(math.ceil(height * across), grid[0]), grid[1]
    return grid[0], min(math.ceil(width * down), grid[1])
