"""Rotary frequencies against the published test vectors (head width 128, entries 0, 1, 16, 31, 32, 47, 62, 63)."""

import pytest
import torch

from filmstrip.config import RopeConfig
from filmstrip.errors import ConfigError
from filmstrip.ops.rope import apply_rotary, inverse_frequencies, rotary_tables

ENTRIES = [0, 1, 16, 31, 32, 47, 62, 63]
DEFAULT = [1, 0.86596435, 0.1, 0.01154782, 0.0099999998, 0.001154782, 0.00013335215, 0.00011547819]
VECTORS = {
    "default": (RopeConfig(), None, DEFAULT),
    "linear": (RopeConfig(scaling="linear", factor=4), None, [x / 4 for x in DEFAULT]),
    "llama3": (
        RopeConfig(theta=5e5, scaling="llama3", factor=8, original_max_positions=8192),
        None,
        [1, 0.81461722, 0.037606031, 0.00085675146, 0.00052484602, 8.1607277e-06, 3.7673226e-07, 3.0689259e-07],
    ),
    "dynamic, long": (
        RopeConfig(scaling="dynamic", factor=2),
        5000,
        [1, 0.86095327, 0.091132499, 0.009646439, 0.0083051333, 0.00087910407, 9.3053779e-05, 8.0114958e-05],
    ),
    "dynamic, within the trained length": (RopeConfig(scaling="dynamic", factor=2), 4096, DEFAULT),
}


@pytest.mark.parametrize("case", VECTORS)
def test_published_vectors(case: str) -> None:
    rope, length, expected = VECTORS[case]
    lengths = None if length is None else torch.tensor([length])
    inv_freq = inverse_frequencies(rope, 128, 4096, lengths)[0]
    # Vectors are printed with 8 digits; float32 powers differ by an ulp or two.
    torch.testing.assert_close(inv_freq[ENTRIES], torch.tensor(expected), rtol=2e-6, atol=0)


def test_dynamic_scaling_is_each_rows_own() -> None:
    rope = RopeConfig(scaling="dynamic", factor=2)
    rows = inverse_frequencies(rope, 128, 4096, torch.tensor([100, 5000]))
    assert rows.shape == (2, 64)
    alone = inverse_frequencies(rope, 128, 4096, torch.tensor([100]))
    assert torch.equal(rows[:1], alone)


def test_halves_are_paired_not_neighbours() -> None:
    """At angle pi/2 for pair 0, (x[0], x[H/2]) becomes (-x[H/2], x[0])."""
    inv_freq = torch.tensor([[torch.pi / 2, 0.0]])
    cos, sin = rotary_tables(inv_freq, torch.tensor([[1]]), torch.float32)
    turned = apply_rotary(torch.tensor([1.0, 2.0, 3.0, 4.0]).view(1, 1, 1, 4), cos, sin)
    torch.testing.assert_close(turned.flatten(), torch.tensor([-3.0, 2.0, 1.0, 4.0]))


def test_scores_depend_on_distance_only() -> None:
    inv_freq = inverse_frequencies(RopeConfig(), 16, 64)
    q, k = torch.randn(2, 1, 1, 1, 16)

    def score(query_position: int, key_position: int) -> float:
        q_turned = apply_rotary(q, *rotary_tables(inv_freq, torch.tensor([[query_position]]), torch.float32))
        k_turned = apply_rotary(k, *rotary_tables(inv_freq, torch.tensor([[key_position]]), torch.float32))
        return float((q_turned * k_turned).sum())

    assert score(9, 4) == pytest.approx(score(45, 40), abs=1e-5)
    assert score(9, 4) != pytest.approx(score(9, 5), abs=1e-3)


def test_tables_stay_exact_in_16_bit() -> None:
    """Angles are float32 before the cast: in bfloat16 arithmetic position 257 would equal 256."""
    inv_freq = inverse_frequencies(RopeConfig(), 16, 512)
    cos, _ = rotary_tables(inv_freq, torch.tensor([[256, 257]]), torch.bfloat16)
    assert not torch.equal(cos[0, 0], cos[0, 1])


def test_llama3_needs_the_original_length() -> None:
    with pytest.raises(ConfigError, match="original length"):
        RopeConfig(scaling="llama3", factor=8)
