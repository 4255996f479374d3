"""The fused kernel and the written-out attention are one function; masks are decided in one place."""

import pytest
import torch

from filmstrip.ops.attention import attention, attention_weights
from filmstrip.ops.masks import AttentionMask, causal_mask, token_positions

# Both backends sum the same float32 products in another order; worst seen 5e-7 on values around 1.
TOLERANCE = 5e-6

PADDING = torch.tensor([[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])


def heads(batch: int, num_heads: int, length: int) -> torch.Tensor:
    return torch.randn(batch, num_heads, length, 8)


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("mask", [None, PADDING], ids=["unpadded", "left-padded"])
@pytest.mark.parametrize("queries", [6, 3, 1])
def test_backends_agree(kv_heads: int, mask: torch.Tensor | None, queries: int) -> None:
    q, k, v = heads(2, 4, queries), heads(2, kv_heads, 6), heads(2, kv_heads, 6)
    decided = causal_mask(mask, queries, 6, torch.device("cpu"))
    fused = attention(q, k, v, decided, "sdpa")
    written_out = attention(q, k, v, decided, "eager")
    assert not fused.isnan().any()
    torch.testing.assert_close(fused, written_out, atol=TOLERANCE, rtol=0)


def test_weights_are_a_causal_distribution() -> None:
    weights = attention_weights(heads(1, 2, 5), heads(1, 2, 5), AttentionMask(is_causal=True))
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 5))
    assert (weights.triu(1) == 0).all()


def test_key_heads_are_repeated_not_tiled() -> None:
    """Queries 0 and 1 share key head 0. With values that name their head, the output shows who read what."""
    v = torch.tensor([10.0, 20.0]).view(1, 2, 1, 1).expand(1, 2, 3, 8)
    out = attention(heads(1, 4, 3), heads(1, 2, 3), v.contiguous(), AttentionMask(is_causal=True), "eager")
    assert out[0, :, 0, 0].tolist() == pytest.approx([10, 10, 20, 20])


def test_plain_causality_takes_the_fast_path_only_when_it_is_right() -> None:
    device = torch.device("cpu")
    assert causal_mask(None, 6, 6, device).is_causal
    assert causal_mask(None, 1, 6, device) == AttentionMask()
    continued = causal_mask(None, 2, 6, device)
    assert not continued.is_causal
    assert continued.keep_BTS is not None
    assert continued.keep_BTS[0].long().tolist() == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]]


def test_padding_reads_itself_and_nobody_reads_padding() -> None:
    keep = causal_mask(PADDING, 6, 6, torch.device("cpu")).keep_BTS
    assert keep is not None
    assert keep[0, 0].long().tolist() == [1, 0, 0, 0, 0, 0]
    assert keep[0, 4].long().tolist() == [0, 0, 1, 1, 1, 0]


def test_positions_start_at_the_first_real_token() -> None:
    assert token_positions(PADDING).tolist() == [[0, 0, 0, 1, 2, 3], [0, 1, 2, 3, 4, 5]]
