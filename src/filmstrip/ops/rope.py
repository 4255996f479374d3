"""Rotary position embedding (Su et al. 2021) in the half-rotation convention of LLaMA.

A head of width H is read as H/2 pairs `(x[i], x[i + H/2])`; pair i at position p is turned by the angle
`p * inv_freq[i]`. (GPT-J and llama.cpp pair neighbours instead; weights differ by a permutation.)

Angles are float32 whatever the model's dtype: in bfloat16 position 257 already equals 256.
"""

import math

import torch

from filmstrip.config import RopeConfig
from filmstrip.shapes import Float, Int, Tensor


def inverse_frequencies(
    rope: RopeConfig, head_dim: int, max_positions: int, lengths_B: Int[Tensor, "B"] | None = None
) -> Float[Tensor, "rows half"]:
    """Angle per position of every pair, one row for all prompts or one per prompt.

    Only `dynamic` scaling depends on the length of the prompt (`lengths_B`, in tokens) and gives B rows. There the
    length is each prompt's own, so a prompt's result does not depend on its batch; transformers takes the longest
    row of the batch instead, and the two agree for a single prompt.
    """
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    inv_freq = 1.0 / rope.theta**exponents
    if rope.scaling == "linear":
        inv_freq = inv_freq / rope.factor
    if rope.scaling == "llama3":
        inv_freq = _llama3(inv_freq, rope)
    if rope.scaling == "dynamic" and lengths_B is not None:
        return _dynamic(exponents.to(lengths_B.device), rope, head_dim, max_positions, lengths_B)
    device = lengths_B.device if lengths_B is not None else None
    return inv_freq[None].to(device)


def _dynamic(
    exponents: Tensor, rope: RopeConfig, head_dim: int, max_positions: int, lengths_B: Tensor
) -> Float[Tensor, "B half"]:
    """Dynamic NTK: past the trained length the base grows so that the slowest pair still spans the prompt."""
    trained = rope.trained_length(max_positions)
    length_B = lengths_B.to(torch.float32).clamp(min=trained)
    growth_B = rope.factor * length_B / trained - (rope.factor - 1)
    theta_B = rope.theta * growth_B ** (head_dim / (head_dim - 2))
    return 1.0 / theta_B[:, None] ** exponents


def _llama3(inv_freq: Tensor, rope: RopeConfig) -> Float[Tensor, "half"]:
    """Llama 3.1: slow pairs are divided by `factor`, fast ones kept, those between interpolated."""
    trained = rope.original_max_positions
    assert trained is not None  # RopeConfig refuses llama3 without it
    turns = trained * inv_freq / (2 * math.pi)  # full turns that a pair makes within the trained length
    smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)
    smooth = smooth.clamp(0.0, 1.0)
    return inv_freq * ((1 - smooth) / rope.factor + smooth)


def rotary_tables(
    inv_freq_rows: Float[Tensor, "rows half"], positions_BT: Int[Tensor, "B T"], dtype: torch.dtype
) -> tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]]:
    """Cosine and sine of every angle, computed in float32 and cast to `dtype`, repeated for both halves of a head."""
    angles = positions_BT[:, :, None].to(torch.float32) * inv_freq_rows[:, None, :]
    angles_BTH = torch.cat([angles, angles], dim=-1)
    return angles_BTH.cos().to(dtype), angles_BTH.sin().to(dtype)


def apply_rotary(
    x_BNTH: Float[Tensor, "B N T H"], cos_BTH: Float[Tensor, "B T H"], sin_BTH: Float[Tensor, "B T H"]
) -> Float[Tensor, "B N T H"]:
    """Turn queries or keys by their positions: `x * cos + rotate_half(x) * sin`."""
    first, second = x_BNTH.chunk(2, dim=-1)
    rotated_BNTH = torch.cat([-second, first], dim=-1)
    return x_BNTH * cos_BTH[:, None] + rotated_BNTH * sin_BTH[:, None]
