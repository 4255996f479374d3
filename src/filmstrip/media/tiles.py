"""An any-resolution image to the pixels of its tiles (transformers' `LlavaNextImageProcessor`, Pillow and NumPy)."""

import numpy as np
import torch

from filmstrip.config.checks import require
from filmstrip.config.tiles import Tiling
from filmstrip.errors import MediaError
from filmstrip.media.transform import MAX_RESIZED_PIXELS, PixelSpec, clip_values, resize_bytes
from filmstrip.shapes import Float, Tensor, UInt8


def tile_pixels(frame_YXC: UInt8[np.ndarray, "Yin Xin C"], spec: PixelSpec, tiling: Tiling) -> Float[Tensor, "N C Y X"]:
    """The base tile, then those of the grid row by row, as a tower reads them.

    The base tile is the whole image squeezed into a square. For the others the image is resized with its proportions,
    centred on black, and cut. Raises `ConfigError` for a `spec` of another tile size, `MediaError` for a grid that is
    too large.
    """
    side, (rows, columns) = tiling.tile, tiling.grid
    require(
        spec.size == spec.crop == side,
        f"images are cut into tiles of {side} pixels, but the image processor resizes to {spec.size} and crops to "
        f"{spec.crop}",
    )
    if rows * columns > MAX_RESIZED_PIXELS:
        raise MediaError(f"a grid of {columns}x{rows} pixels is too large")
    grid_YXC = np.zeros((rows, columns, 3), dtype=np.uint8)
    (top, left), (height, width) = tiling.offset, tiling.scaled
    grid_YXC[top : top + height, left : left + width] = resize_bytes(frame_YXC, tiling.scaled)
    cut = grid_YXC.reshape(tiling.rows, side, tiling.columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    base_YXC = resize_bytes(frame_YXC, (side, side))
    tiles_NYXC = np.concatenate([base_YXC[None], cut])
    return clip_values(torch.from_numpy(tiles_NYXC).permute(0, 3, 1, 2), spec)
