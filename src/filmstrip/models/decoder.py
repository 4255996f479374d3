"""The text tower: LLaMA, a decoder-only causal transformer (Touvron et al. 2023).

Embeddings in, hidden states and logits out; it never learns which rows were pictures.
"""

import torch
from torch import nn

from filmstrip.cache import KVCache
from filmstrip.config import TextConfig
from filmstrip.models.taps import Taps, tap
from filmstrip.ops.activation import get_activation
from filmstrip.ops.attention import AttentionBackend, attention
from filmstrip.ops.masks import AttentionMask
from filmstrip.ops.norm import rms_norm
from filmstrip.ops.rope import apply_rotary, inverse_frequencies, rotary_tables
from filmstrip.shapes import Float, Int, Tensor


class RMSNorm(nn.Module):
    """`ops.norm.rms_norm` with its learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rows D"]) -> Float[Tensor, "*rows D"]:
        """Normalise the last dimension."""
        return rms_norm(x, self.weight, self.eps)


class DecoderAttention(nn.Module):
    """Causal self-attention with rotary positions and grouped key/value heads."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        width, bias = config.hidden_size, config.attention_bias
        self.q_proj = nn.Linear(width, self.num_heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(width, self.num_kv_heads * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.num_heads * self.head_dim, width, bias=bias)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]],
        mask: AttentionMask,
        backend: AttentionBackend,
        cached: tuple[KVCache, int] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B out D"]:
        """Attend over this call's tokens and, with `cached` (cache, layer index), over all earlier ones.

        With `last` only so many tokens ask, the last ones; all are there to be read.
        """
        batch, length, _ = x_BTD.shape
        asking_BTD, asking_rotary = x_BTD, rotary
        if last is not None:
            asking_BTD, asking_rotary = x_BTD[:, -last:], (rotary[0][:, -last:], rotary[1][:, -last:])
            mask = mask.last_queries(last, length, x_BTD.device)
        q_BNTH = self.q_proj(asking_BTD).view(batch, -1, self.num_heads, self.head_dim).transpose(1, 2)
        k_BKTH = self.k_proj(x_BTD).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        v_BKTH = self.v_proj(x_BTD).view(batch, length, self.num_kv_heads, self.head_dim).transpose(1, 2)
        q_BNTH, k_BKTH = apply_rotary(q_BNTH, *asking_rotary), apply_rotary(k_BKTH, *rotary)
        if cached is not None:
            cache, layer = cached
            # The cache may be narrower than the arithmetic; then the new keys, too, are what it holds.
            k_BKTH, v_BKTH = (kept.to(q_BNTH.dtype) for kept in cache.write(layer, k_BKTH, v_BKTH))
        out_BNTH = attention(q_BNTH, k_BKTH, v_BKTH, mask, backend)
        return self.o_proj(out_BNTH.transpose(1, 2).flatten(2))


class SwiGLU(nn.Module):
    """Gated MLP: `down(act(gate(x)) * up(x))` (Shazeer 2020)."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        width, inner, bias = config.hidden_size, config.intermediate_size, config.mlp_bias
        self.gate_proj = nn.Linear(width, inner, bias=bias)
        self.up_proj = nn.Linear(width, inner, bias=bias)
        self.down_proj = nn.Linear(inner, width, bias=bias)
        self.activation = get_activation(config.activation)

    def forward(self, x_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T D"]:
        """Transform each token on its own."""
        return self.down_proj(self.activation(self.gate_proj(x_BTD)) * self.up_proj(x_BTD))


class DecoderBlock(nn.Module):
    """Attention, then MLP, each on a normalised copy of the residual stream and added back to it."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.attention = DecoderAttention(config)
        self.mlp_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = SwiGLU(config)

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        rotary: tuple[Float[Tensor, "B T H"], Float[Tensor, "B T H"]],
        mask: AttentionMask,
        backend: AttentionBackend,
        cached: tuple[KVCache, int] | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B out D"]:
        """One layer, for the `last` positions alone if nobody reads the others."""
        attended_BTD = self.attention(self.attention_norm(x_BTD), rotary, mask, backend, cached, last)
        x_BTD = (x_BTD if last is None else x_BTD[:, -last:]) + attended_BTD
        return x_BTD + self.mlp(self.mlp_norm(x_BTD))


class Decoder(nn.Module):
    """Token embedding, blocks, final norm and output head."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        self.config = config
        self.backend: AttentionBackend = "sdpa"
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(DecoderBlock(config) for _ in range(config.num_layers))
        self.final_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.lm_head.weight = self.token_embedding.weight

    @property
    def compute_dtype(self) -> torch.dtype:
        """What it works in, which weights may be stored more narrowly than (`models.wide`)."""
        return self.final_norm.weight.dtype

    def forward(
        self,
        x_BTD: Float[Tensor, "B T D"],
        positions_BT: Int[Tensor, "B T"],
        mask: AttentionMask,
        cache: KVCache | None = None,
        taps: Taps | None = None,
        last: int | None = None,
    ) -> Float[Tensor, "B out D"]:
        """Hidden states after the final norm, of all positions or of so many last ones.

        With a cache, `x_BTD` are the tokens after its current length; they are written but the cache is not
        advanced (the caller's loop does that). With `last` the last block leaves out what nobody reads.
        """
        cos_BTH, sin_BTH = self._rotary(positions_BT, x_BTD.dtype)
        rotary = (tap(taps, "text_tower.rotary.cos", cos_BTH), tap(taps, "text_tower.rotary.sin", sin_BTH))
        x_BTD = tap(taps, "text_tower.hidden_states.0", x_BTD)
        for layer, block in enumerate(self.blocks):
            cached = None if cache is None else (cache, layer)
            asked = last if layer + 1 == len(self.blocks) else None
            x_BTD = block(x_BTD, rotary, mask, self.backend, cached, asked)
            x_BTD = tap(taps, f"text_tower.hidden_states.{layer + 1}", x_BTD)
        return tap(taps, "text_tower.final_norm", self.final_norm(x_BTD))

    def logits(self, hidden_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        """Scores of every vocabulary entry, for the positions given."""
        return self.lm_head(hidden_BTD)

    def _rotary(self, positions_BT: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Tables computed anew per call: float32 always, so no cast of the model can round the frequencies."""
        config = self.config
        lengths_B = positions_BT.amax(dim=-1) + 1
        inv_freq = inverse_frequencies(config.rope, config.head_dim, config.max_positions, lengths_B)
        return rotary_tables(inv_freq, positions_BT, dtype)
