"""Build modules that hold no values and take no time, to be filled from a checkpoint or only counted."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from filmstrip.config import ModelConfig, TextConfig, VisionConfig
from filmstrip.models.decoder import Decoder
from filmstrip.models.video_llava import VideoLlava
from filmstrip.models.vision import VisionTower


class _SkipInitialisation(TorchFunctionMode):
    """Leaves out `torch.nn.init`. Random numbers for `meta` tensors cost nothing, but importing what draws them
    (PyTorch's compiler) takes two seconds.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return (kwargs or {}).get("tensor", args[0] if args else None)
        return func(*args, **(kwargs or {}))


@contextmanager
def weightless() -> Iterator[None]:
    """Modules constructed inside have parameters of the right shapes on the `meta` device."""
    with torch.device("meta"), _SkipInitialisation():
        yield


def build_meta(config: ModelConfig | TextConfig | VisionConfig) -> nn.Module:
    """The model, text tower or vision tower that a configuration describes, without values."""
    with weightless():
        if isinstance(config, ModelConfig):
            return VideoLlava(config)
        return Decoder(config) if isinstance(config, TextConfig) else VisionTower(config)
