"""What a checkpoint is, in one sentence for people."""

import math
from collections.abc import Iterable

from filmstrip.checkpoint.header import DTYPES, TensorInfo, dtype_name
from filmstrip.config import ModelConfig, TextConfig, VisionConfig

AnyConfig = ModelConfig | TextConfig | VisionConfig


def describe(config: AnyConfig, layout_title: str, dtype: str, parameters: int) -> str:
    """`Video-LLaVA without temporal attention, hub layout (A), bfloat16, 7.4 B parameters`."""
    return f"{model_title(config)}, {layout_title}, {dtype}, {short_count(parameters)} parameters"


def model_title(config: AnyConfig) -> str:
    """What kind of model it is. Whether there is temporal attention is said where published models differ in it."""
    if isinstance(config, TextConfig):
        return "LLaMA text tower"
    if isinstance(config, VisionConfig):
        return "CLIP vision tower" + (" with temporal attention" if config.temporal_attention else "")
    temporal = config.video_tower.temporal_attention
    usual = "strided-pool" if config.family == "llava-next-video" else "keep-all"
    aggregation = "" if config.aggregation == usual else f" and the aggregation {config.aggregation}"
    if config.family != "video-llava" and not temporal:
        return config.title + aggregation.replace(" and", " with")
    return f"{config.title} {'with' if temporal else 'without'} temporal attention{aggregation}"


def dtype_names(infos: Iterable[TensorInfo]) -> str:
    """The dtypes of stored tensors, `bfloat16` or `bfloat16/float32`."""
    return "/".join(sorted({dtype_name(DTYPES[info.dtype]) for info in infos}))


def short_count(number: int) -> str:
    """A count with two digits at least and its unit: 7.4 B, 303 M, 1.9 M, 512."""
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= unit:
            value = number / unit
            return f"{value:.1f} {name}" if math.floor(value) < 100 else f"{value:.0f} {name}"
    return str(number)
