"""Scaled dot-product attention: one function, two backends.

`sdpa` calls PyTorch's fused kernel. `eager` is the same equation written out; readers start there, and the inspector
runs it because it can hand out the attention weights. A test holds the two together.
"""

from typing import Literal, get_args

import torch
from torch.nn import functional

from filmstrip.ops.masks import AttentionMask
from filmstrip.shapes import Float, Tensor

AttentionBackend = Literal["sdpa", "eager"]
ATTENTION_BACKENDS: tuple[str, ...] = get_args(AttentionBackend)


def attention(
    q_BNTH: Float[Tensor, "B N T H"],
    k_BKSH: Float[Tensor, "B K S H"],
    v_BKSH: Float[Tensor, "B K S H"],
    mask: AttentionMask,
    backend: AttentionBackend = "sdpa",
) -> Float[Tensor, "B N T H"]:
    """Each query's average of the values, weighted by `softmax(q k^T / sqrt(H))`.

    N query heads share K key/value heads: head j of K serves queries `j*N/K .. (j+1)*N/K - 1` (Ainslie et al. 2023).
    """
    if backend == "eager":
        return _attend(attention_weights(q_BNTH, k_BKSH, mask), v_BKSH)
    return functional.scaled_dot_product_attention(
        q_BNTH,
        k_BKSH,
        v_BKSH,
        attn_mask=None if mask.keep_BTS is None else mask.keep_BTS[:, None],
        is_causal=mask.is_causal,
        enable_gqa=q_BNTH.shape[1] != k_BKSH.shape[1],
    )


def attention_weights(
    q_BNTH: Float[Tensor, "B N T H"], k_BKSH: Float[Tensor, "B K S H"], mask: AttentionMask
) -> Float[Tensor, "B N T S"]:
    """How much each query reads each key; rows sum to one. The softmax runs in float32 or wider."""
    num_queries, num_keys = q_BNTH.shape[2], k_BKSH.shape[2]
    k_BNSH = _repeat_heads(k_BKSH, q_BNTH.shape[1])
    scores_BNTS = q_BNTH @ k_BNSH.transpose(-1, -2) * q_BNTH.shape[-1] ** -0.5
    scores_BNTS = scores_BNTS.to(torch.promote_types(q_BNTH.dtype, torch.float32))
    if mask.is_causal:
        keep_TS = torch.ones(num_queries, num_keys, dtype=torch.bool, device=q_BNTH.device).tril()
        scores_BNTS = scores_BNTS.masked_fill(~keep_TS, -torch.inf)
    elif mask.keep_BTS is not None:
        scores_BNTS = scores_BNTS.masked_fill(~mask.keep_BTS[:, None], -torch.inf)
    return scores_BNTS.softmax(dim=-1).to(q_BNTH.dtype)


def _attend(weights_BNTS: Tensor, v_BKSH: Tensor) -> Float[Tensor, "B N T H"]:
    return weights_BNTS @ _repeat_heads(v_BKSH, weights_BNTS.shape[1])


def _repeat_heads(x_BKSH: Tensor, num_heads: int) -> Float[Tensor, "B N S H"]:
    """Give each of N query heads its key/value head: (0,0,1,1), not (0,1,0,1)."""
    return x_BKSH.repeat_interleave(num_heads // x_BKSH.shape[1], dim=1)
