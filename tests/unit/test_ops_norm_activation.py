"""RMS normalisation and activations against their equations, by hand."""

import math

import pytest
import torch

from filmstrip.errors import ConfigError
from filmstrip.ops.activation import ACTIVATIONS, get_activation
from filmstrip.ops.norm import rms_norm


def test_rms_norm_by_hand() -> None:
    """Mean square of (3, 4) is 12.5; nothing is subtracted."""
    out = rms_norm(torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0]), eps=0.0)
    torch.testing.assert_close(out, torch.tensor([[3.0, 8.0]]) / math.sqrt(12.5))


def test_eps_is_inside_the_root() -> None:
    out = rms_norm(torch.zeros(1, 4) + 1e-3, torch.ones(4), eps=1e-6)
    torch.testing.assert_close(out, torch.full((1, 4), 1e-3 / math.sqrt(2e-6)))


def test_zeros_stay_zeros() -> None:
    assert rms_norm(torch.zeros(2, 3), torch.ones(3), eps=1e-5).tolist() == [[0, 0, 0], [0, 0, 0]]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_accumulates_wide(dtype: torch.dtype) -> None:
    """300 squared overflows float16, and 4,096 equal squares summed in bfloat16 stop growing at 256."""
    x = torch.full((1, 4096), 300.0, dtype=dtype)
    out = rms_norm(x, torch.ones(4096, dtype=dtype), eps=1e-5)
    assert out.dtype == dtype
    assert torch.equal(out, torch.ones_like(out))


def test_rounding_comes_before_the_weight() -> None:
    """In 16 bit the order decides the last digit; LLaMA's reference rounds first."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(64, 256, generator=generator).bfloat16() for _ in range(2))
    wide = x.float() * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5)
    rounded_first, rounded_last = weight[0] * wide.bfloat16(), (weight[0].float() * wide).bfloat16()
    assert torch.equal(rms_norm(x, weight[0], 1e-5), rounded_first)
    assert not torch.equal(rounded_first, rounded_last)


def test_float64_stays_float64() -> None:
    x = torch.randn(3, 8, dtype=torch.float64)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(rms_norm(x, torch.ones(8, dtype=torch.float64), 1e-5), expected, rtol=1e-14, atol=0)


# The equations at x = 1, from the papers; digits by Python's `math`.
AT_ONE = {
    "quick_gelu": 1 / (1 + math.exp(-1.702)),
    "gelu": 0.5 * (1 + math.erf(1 / math.sqrt(2))),
    "gelu_new": 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)),
    "gelu_pytorch_tanh": 0.5 * (1 + math.tanh(math.sqrt(2 / math.pi) * 1.044715)),
    "silu": 1 / (1 + math.exp(-1)),
    "swish": 1 / (1 + math.exp(-1)),
    "relu": 1.0,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    activation = get_activation(name)
    one, zero, far = activation(torch.tensor([1.0, 0.0, -30.0], dtype=torch.float64)).tolist()
    assert one == pytest.approx(AT_ONE[name], abs=1e-7)
    assert (zero, round(far, 9)) == (0.0, 0.0)


def test_the_gelus_are_three_functions() -> None:
    """All pass shape checks, so only their values tell them apart (2e-4 and 2e-2)."""
    x = torch.linspace(-4, 4, 1001)
    exact, tanh, quick = (get_activation(name)(x) for name in ("gelu", "gelu_new", "quick_gelu"))
    assert 1e-4 < float((exact - tanh).abs().max()) < 1e-3
    assert 1e-2 < float((exact - quick).abs().max()) < 3e-2


def test_an_unknown_activation_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown activation 'quickgelu'.*did you mean 'quick_gelu'"):
        get_activation("quickgelu")
