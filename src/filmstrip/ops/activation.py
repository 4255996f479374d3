"""Activation functions that LLaMA and CLIP configurations name."""

from collections.abc import Callable

import torch
from torch.nn import functional

from filmstrip.config.checks import require_choice
from filmstrip.shapes import Float, Tensor


def quick_gelu(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """`x * sigmoid(1.702 x)`, OpenAI CLIP's approximation of GELU."""
    return x * torch.sigmoid(1.702 * x)


def gelu_tanh(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """GELU by its tanh approximation (Hendrycks & Gimpel 2016)."""
    return functional.gelu(x, approximate="tanh")


# Keys are the `hidden_act` spellings of Hugging Face configurations. `gelu` is the exact one, by erf.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": quick_gelu,
    "gelu": functional.gelu,
    "gelu_new": gelu_tanh,
    "gelu_pytorch_tanh": gelu_tanh,
    "silu": functional.silu,
    "swish": functional.silu,
    "relu": functional.relu,
}


def get_activation(name: str) -> Callable[[Tensor], Tensor]:
    """Look an activation up by its configuration name. Raises `ConfigError` naming the known ones."""
    require_choice("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]
