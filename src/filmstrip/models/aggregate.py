"""Aggregation: from tokens per frame to the visual tokens of one clip, `(M F P E) -> (M R E)`.

Video-LLaVA keeps every token of every frame, in order. The others are what later models do with them, and what
`filmstrip experiment` compares. Each is a function or a module of that shape, made from the configuration by its entry
in `AGGREGATIONS`; how many tokens come out is in `ModelConfig.clip_tokens`. Tokens of single frames come first, frame
after frame, and those of all frames together behind them.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional

from filmstrip.config import ModelConfig
from filmstrip.config.aggregation import POOL_STRIDE
from filmstrip.models.merging import merge_tokens
from filmstrip.models.resampler import Resampler
from filmstrip.shapes import Float, Tensor

Aggregation = Callable[[Tensor], Tensor]


def keep_all(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """All tokens, frame after frame: R = F * P (Video-LLaVA, Lin et al. 2023)."""
    return x_MFPE.flatten(1, 2)


def mean_frames(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """The mean over frames at each position: R = P. The order of the frames is lost."""
    return x_MFPE.mean(dim=1)


def temporal_spatial_pool(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """The mean of each frame, then the mean over frames at each position: R = F + P (Video-ChatGPT, Maaz et al. 2023).

    The original pads the frames' means to 100; here there are as many as frames.
    """
    return torch.cat([x_MFPE.mean(dim=2), x_MFPE.mean(dim=1)], dim=1)


def strided_pool(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """The mean of each square of 2 by 2 patches: R = F * P / 4 (LLaVA-NeXT-Video, Zhang et al. 2024).

    P is a square number: patches row by row, no class token. An odd last row or column of patches is left out.
    """
    num_media, num_frames, num_patches, width = x_MFPE.shape
    side = math.isqrt(num_patches)
    maps = x_MFPE.reshape(num_media * num_frames, side, side, width).permute(0, 3, 1, 2)
    pooled = functional.avg_pool2d(maps, kernel_size=POOL_STRIDE)
    return pooled.flatten(2).transpose(1, 2).reshape(num_media, -1, width)


def class_token(x_MFPE: Float[Tensor, "M F P E"]) -> Float[Tensor, "M R E"]:
    """Each frame's class token alone: R = F."""
    return x_MFPE[:, :, 0]


def token_merging(x_MFPE: Float[Tensor, "M F P E"], kept: int, protect_first: bool) -> Float[Tensor, "M R E"]:
    """Similar tokens of a frame become their mean until `kept` are left: R = F * kept (ToMe, Bolya et al. 2023)."""
    num_media, _, _, width = x_MFPE.shape
    return merge_tokens(x_MFPE.flatten(0, 1), kept, protect_first=protect_first).reshape(num_media, -1, width)


def _token_merging(config: ModelConfig) -> Aggregation:
    return partial(
        token_merging, kept=config.aggregation_settings.kept, protect_first=config.keeps_class_token("video")
    )


AGGREGATIONS: dict[str, Callable[[ModelConfig], Aggregation]] = {
    "keep-all": lambda config: keep_all,
    "mean-frames": lambda config: mean_frames,
    "temporal-spatial-pool": lambda config: temporal_spatial_pool,
    "strided-pool": lambda config: strided_pool,
    "resampler": Resampler,
    "class-token": lambda config: class_token,
    "token-merging": _token_merging,
}


def make_aggregation(config: ModelConfig) -> Aggregation:
    """The aggregation that `config` names."""
    return AGGREGATIONS[config.aggregation](config)
