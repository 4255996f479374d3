"""`decode_step` in one call of a compiled kernel, where there is one and it computes the same.

The twin is `step.decode_step`, which anything unusual goes through: a GPU, hooks, changed layers, gradients, more rows
than the kernel has registers for. Both give the same logits but for rounding (`tests/parity/test_kernels.py`).
"""

import torch
from torch import nn

from filmstrip.cache import KVCache
from filmstrip.kernels import MAX_ROWS, FusedStep, Kernels, Projections, StoredMatrix, find_kernels
from filmstrip.models import VideoLlava
from filmstrip.models.decoder import Decoder, DecoderBlock, RMSNorm
from filmstrip.models.record import has_hooks
from filmstrip.models.wide import StoredLinear, WideEmbedding
from filmstrip.ops.masks import token_positions
from filmstrip.ops.rope import inverse_frequencies, rotary_tables
from filmstrip.shapes import Float, Int, Tensor


class FusedDecoding:
    """The text tower's step for one cache."""

    def __init__(self, kernels: Kernels, decoder: Decoder, cache: KVCache) -> None:
        self.embedding, self.cache = decoder.token_embedding.weight, cache
        config = decoder.config
        inv_freq = inverse_frequencies(config.rope, config.head_dim, config.max_positions)
        positions = torch.arange(cache.capacity)[None]
        cos_1SH, sin_1SH = rotary_tables(inv_freq, positions, torch.float32)
        self._step = FusedStep(
            kernels,
            [_projections(block) for block in decoder.blocks],
            decoder.final_norm.weight,
            _stored(decoder.lm_head),
            cache,
            (cos_1SH[0], sin_1SH[0]),
            config.rms_norm_eps,
        )

    def __call__(
        self, ids_B: Int[Tensor, "B"], attention_mask: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B W"]:
        """As `step.decode_step`: one new token per row; logits of the token after it."""
        length = self.cache.length
        if attention_mask is None:
            positions_B, keep_BS = torch.full_like(ids_B, length), None
        else:
            positions_B = token_positions(attention_mask[:, : length + 1])[:, -1]
            keep_BS = attention_mask[:, : length + 1].bool()
        logits_BW = self._step(self.embedding[ids_B].float(), positions_B, keep_BS)
        self.cache.advance(1)
        return logits_BW


def fused_decoding(model: VideoLlava, cache: KVCache) -> FusedDecoding | None:
    """The fused step for a model and a cache, or None where it cannot be had or would not compute the same."""
    decoder = model.text_tower
    if not _fits(decoder, cache):
        return None
    kernels, _ = find_kernels()
    return None if kernels is None else FusedDecoding(kernels, decoder, cache)


def _fits(decoder: Decoder, cache: KVCache) -> bool:
    config = decoder.config
    usual = (
        cache.keys.device.type == "cpu"
        and cache.keys.dtype == torch.float32
        and cache.keys.shape[1] <= MAX_ROWS
        and config.activation in ("silu", "swish")
        and config.rope.scaling != "dynamic"
        and decoder.backend == "sdpa"
    )
    return usual and not has_hooks(decoder) and all(map(_is_plain, decoder.modules()))


def _is_plain(module: nn.Module) -> bool:
    """Whether a module is what the kernel takes it for, its weights as they were loaded."""
    if type(module) in (nn.Linear, StoredLinear):
        return _stored(module).is_readable
    return any(True for _ in module.children()) or type(module) in (nn.Embedding, WideEmbedding, RMSNorm)


def _projections(block: nn.Module) -> Projections:
    assert isinstance(block, DecoderBlock)
    attention, mlp = block.attention, block.mlp
    linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    q, k, v, o, gate, up, down = map(_stored, (*linears, mlp.gate_proj, mlp.up_proj, mlp.down_proj))
    norms = (block.attention_norm.weight, block.mlp_norm.weight)
    return Projections(norms[0], q, k, v, o, norms[1], gate, up, down)


def _stored(linear: nn.Module) -> StoredMatrix:
    if isinstance(linear, StoredLinear):
        return linear.stored
    assert isinstance(linear, nn.Linear)
    return StoredMatrix(linear.weight, linear.bias)
