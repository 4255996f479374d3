"""Aggregation: from tokens per frame to the visual tokens of one clip.

Video-LLaVA keeps every token of every frame, in order; LLaVA-NeXT-Video pools within each frame. To add another, write
a function of this shape and enter it in `AGGREGATIONS` and in `config.model.AGGREGATIONS`.
"""

import math
from collections.abc import Callable

from torch.nn import functional

from filmstrip.config.model import POOL_STRIDE
from filmstrip.shapes import Float, Tensor


def keep_all(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """All tokens, frame after frame: R = F * P."""
    return x_MFPE.flatten(1, 2)


def strided_pool(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """The mean of each square of 2 by 2 patches: R = F * P / 4 (LLaVA-NeXT-Video, Zhang et al. 2024).

    P is a square number: patches row by row, no class token. An odd last row or column of patches is left out.
    """
    num_media, num_frames, num_patches, width = x_MFPE.shape
    side = math.isqrt(num_patches)
    maps = x_MFPE.reshape(num_media * num_frames, side, side, width).permute(0, 3, 1, 2)
    pooled = functional.avg_pool2d(maps, kernel_size=POOL_STRIDE)
    return pooled.flatten(2).transpose(1, 2).reshape(num_media, -1, width)


AGGREGATIONS: dict[str, Callable[[Tensor], Tensor]] = {"keep-all": keep_all, "strided-pool": strided_pool}
