"""Root-mean-square normalisation (Zhang & Sennrich 2019), as LLaMA uses it."""

import torch

from filmstrip.shapes import Float, Tensor


def rms_norm(x: Float[Tensor, "*rows D"], weight: Float[Tensor, "D"], eps: float) -> Float[Tensor, "*rows D"]:
    """`weight * x / sqrt(mean(x^2) + eps)`, the mean accumulated in float32 (float64 stays float64).

    The result is cast back to the input's dtype *before* the weight multiplies it: in 16 bit that order decides the
    last digit, and LLaMA's reference rounds first.
    """
    x_wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.rsqrt(x_wide.square().mean(dim=-1, keepdim=True) + eps)
    return weight * (x_wide * scale).to(x.dtype)
