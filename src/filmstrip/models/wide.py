"""Layers whose weights are stored in fewer bits than they work in.

16-bit weights in float32 arithmetic: as a float32 model with these weights, so answers are nearer to what the weights
mean than those of 16-bit arithmetic, and differ from them by its rounding. Quantised weights: as a model with the
weights that the numbers and scales stand for.
"""

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from filmstrip.config.checks import require_choice
from filmstrip.kernels import GROUPS, HALF_DTYPES, MULTIPLES, StoredMatrix, faster_widened, product
from filmstrip.models.video_llava import VideoLlava
from filmstrip.shapes import Float, Int, Tensor

COMPUTE = ("auto", "stored", "float32")
GROUP_MULTIPLE = max(MULTIPLES.values())  # fits any number of bits
_VISION = ("image_tower.", "video_tower.", "projector.", "aggregation.")


class StoredLinear(nn.Module):
    """A linear layer whose weight is a `StoredMatrix`."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, scales: nn.Parameter | None = None) -> None:
        super().__init__()
        self.weight, self.bias, self.scales = weight, bias, scales

    @property
    def stored(self) -> StoredMatrix:
        """The layer as the kernels read it."""
        return StoredMatrix(self.weight, self.bias, self.scales)

    def forward(self, x: Float[Tensor, "*rows inputs"]) -> Float[Tensor, "*rows outputs"]:
        """As `nn.Linear`, in the precision of `x`."""
        return product(x, self.stored)


class WideEmbedding(nn.Module):
    """A table with the other's rows; what is looked up is float32."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.weight = embedding.weight

    def forward(self, ids: Int[Tensor, "*rows"]) -> Float[Tensor, "*rows D"]:
        """Look up."""
        return functional.embedding(ids, self.weight).float()


def widen(model: nn.Module) -> None:
    """Make a model of 16-bit weights work in float32, in place.

    Products and tables keep their weights as they are; what is small (norms, biases, the convolution that cuts patches)
    becomes float32. Weights that several layers share stay shared.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear and child.weight.dtype in HALF_DTYPES:
                bias = None if child.bias is None else _widened(child.bias)
                setattr(module, name, StoredLinear(cast(nn.Parameter, child.weight), bias))
            elif type(child) is nn.Embedding and child.weight.dtype in HALF_DTYPES:
                setattr(module, name, WideEmbedding(child))
    stored = [module for module in model.modules() if isinstance(module, StoredLinear | WideEmbedding)]
    kept = {id(tensor) for module in stored for tensor in (module.weight, getattr(module, "scales", None))}
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) not in kept and parameter.dtype in HALF_DTYPES:
                setattr(module, name, _widened(parameter))


def with_wide_text_tower(model: VideoLlava) -> VideoLlava:
    """The same model and the same weights, seen so that the text tower works in float32 (`widen`).

    Nothing large is copied. What is small is, so this is to be made anew when weights may have changed.
    """
    tower = model.text_tower
    shared = {id(tensor): tensor for tensor in (*tower.parameters(), *tower.buffers())}
    seen = copy.copy(model)
    seen._modules = {**model._modules, "text_tower": copy.deepcopy(tower, shared)}
    widen(seen.text_tower)
    return seen


def widened_sizes(model: nn.Module) -> list[int]:
    """Numbers of weights of the parameters that `widen` makes float32 in a model of 16-bit weights."""
    kept = {id(module.weight) for module in model.modules() if type(module) in (nn.Linear, nn.Embedding)}
    return [parameter.numel() for parameter in model.parameters() if id(parameter) not in kept]


def _widened(parameter: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(parameter.data.float(), requires_grad=parameter.requires_grad)


@dataclass(frozen=True)
class Quantisable:
    """A linear layer, the bits that its weight is to have, and the inputs that share a scale (None: they do not
    divide into groups, and it stays as it is).
    """

    linear: nn.Linear
    bits: int
    group: int | None


def quantisable_layers(
    model: nn.Module, bits: int, vision_bits: int = 8, group: int | None = None
) -> dict[str, Quantisable]:
    """What quantising a model to so many bits is about: every linear layer but the head, by name.

    The head may be the embedding table too, and decides between tokens that are close. Vision towers, projector and
    aggregation have bits of their own (0: as they are). `group` is the number of inputs that share a scale, by default
    `GROUPS`; where they do not divide by that, `GROUP_MULTIPLE`.
    """
    found = {}
    for name, module in model.named_modules():
        of_vision = name.startswith(_VISION)
        own_bits = vision_bits if of_vision else bits
        if isinstance(module, nn.Linear) and not name.endswith("lm_head") and own_bits:
            sizes = (group or GROUPS[own_bits], GROUP_MULTIPLE)
            found[name] = Quantisable(module, own_bits, next((g for g in sizes if module.in_features % g == 0), None))
    return found


def is_stored(model: nn.Module) -> bool:
    """Whether a model has layers whose weights are stored in fewer bits than they work in."""
    return any(isinstance(module, StoredLinear) for module in model.modules())


def is_quantised(model: nn.Module) -> bool:
    """Whether a model has layers whose weights are whole numbers."""
    return any(isinstance(module, StoredLinear) and module.scales is not None for module in model.modules())


def count_weights(model: nn.Module) -> int:
    """Number of weights that a model's parameters stand for, shared ones once; scales are none."""
    quantised = [m for m in model.modules() if isinstance(m, StoredLinear) and m.scales is not None]
    stored = {id(tensor) for layer in quantised for tensor in (layer.weight, layer.scales)}
    plain = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in stored)
    return plain + sum(layer.stored.rows * layer.stored.cols for layer in quantised)


def set_compute(model: nn.Module, compute: str, dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """Decide in what precision a model of `dtype` weights works; what it is then.

    `compute` is one of `COMPUTE`: what the weights have (`stored`), `float32`, or `auto`: float32 where 16-bit products
    are slower on this CPU, which is measured once, or quantised weights are widened anyway. Raises `ConfigError` for
    another one.
    """
    require_choice("compute", compute, COMPUTE)
    if compute == "stored" or dtype not in HALF_DTYPES:
        return dtype
    if compute == "float32" or (device.type == "cpu" and (is_quantised(model) or faster_widened(dtype))):
        widen(model)
        return torch.float32
    return dtype
