"""Visual tokens of an image that was cut into tiles (LLaVA-NeXT's any-resolution images), put back in reading order::

    base tile          the whole image in one square, row by row
    grid row 0         patches of all tiles side by side, left to right, then the newline vector
    grid row 1         ...

Rows and columns of patches that hold only padding are left out. Pure function of tensors; which grid an image has is
decided by `config.tiles`.
"""

import math

import torch

from filmstrip.config.tiles import Tiling
from filmstrip.shapes import Float, Tensor


def join_tiles(
    tiles_NPD: Float[Tensor, "N P D"], tiling: Tiling, newline_D: Float[Tensor, "D"]
) -> Float[Tensor, "R D"]:
    """The tokens of one image, from the projected patches of its N tiles (the base tile first)."""
    base_PD, grid_NPD = tiles_NPD[0], tiles_NPD[1:]
    side = math.isqrt(tiles_NPD.shape[1])
    patches = grid_NPD.reshape(tiling.rows, tiling.columns, side, side, -1)
    patches = patches.transpose(1, 2).flatten(2, 3).flatten(0, 1)  # patch rows, patch columns, D
    rows, columns = tiling.picture_patches(side)
    patches = patches[rows, columns]
    newlines = newline_D.to(patches).expand(patches.shape[0], 1, -1)
    return torch.cat([base_PD, torch.cat([patches, newlines], dim=1).flatten(0, 1)])
