"""`decode_step` in one call of a compiled kernel, where there is one and it computes the same.

The twin is `step.decode_step`, which anything unusual goes through: a GPU, hooks, layers of other kinds or sizes, more
rows than the kernel has registers for. Both give the same logits but for rounding (`tests/parity/test_kernels.py`).

The kernel works in float32. Where a model of 16-bit weights works in 16 bits, because this processor multiplies
matrices faster so, a few rows are still bound by reading memory, and the kernel reads it faster; its twin is then the
model with a text tower that works in float32.
"""

from types import FunctionType

import torch
from torch import nn
from torch.nn import functional

from filmstrip.cache import KVCache
from filmstrip.config import TextConfig
from filmstrip.generation.step import decode_step
from filmstrip.kernels import (
    FLOAT_KINDS,
    HALF_DTYPES,
    MAX_ROWS,
    FusedStep,
    Kernels,
    Projections,
    StoredMatrix,
    find_kernels,
)
from filmstrip.models import VideoLlava
from filmstrip.models import decoder as twin
from filmstrip.models.decoder import Decoder, DecoderAttention, DecoderBlock, RMSNorm, SwiGLU
from filmstrip.models.record import has_hooks
from filmstrip.models.wide import StoredLinear, WideEmbedding, with_wide_text_tower
from filmstrip.ops.masks import token_positions
from filmstrip.ops.rope import inverse_frequencies, rotary_tables
from filmstrip.shapes import Float, Int, Tensor

Agreement = dict[tuple[object, ...], bool]  # by the code that ran: whether the kernel computes what that does
_AGREES = "_kernel_agrees"  # of a decoder
_APART = 1e-3  # of the largest logit: far above rounding, far below any other equation


class FusedDecoding:
    """The text tower's step for one cache.

    The first step of a decoder is done both ways. Who changes `models.decoder`, the cache or a function of `ops`
    changes what the twin computes and not the kernel; then the twin is right, and the kernel is left alone. Code that
    was changed since is looked at anew.
    """

    def __init__(self, kernels: Kernels, model: VideoLlava, cache: KVCache, known: Agreement) -> None:
        decoder = model.text_tower
        self.model, self.embedding, self.cache = model, decoder.token_embedding.weight, cache
        config, self._code, self._known = decoder.config, _code(), known
        self._inv_freq = inverse_frequencies(config.rope, config.head_dim, config.max_positions)
        self._step = FusedStep(
            kernels,
            [_projections(block) for block in decoder.blocks],
            decoder.final_norm.weight,
            _stored(decoder.lm_head),
            cache,
            config.rms_norm_eps,
        )

    def __call__(
        self, ids_B: Int[Tensor, "B"], attention_mask: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B W"]:
        """As `step.decode_step`: one new token per row; logits of the token after it."""
        known = self._known
        if self._code not in known:
            length = self.cache.length
            twin_BW = decode_step(self.model, self.cache, ids_B, attention_mask)
            self.cache.truncate(length)
            ours_BW = self._run(ids_B, attention_mask)
            known[self._code] = bool((ours_BW - twin_BW).abs().max() <= _APART * twin_BW.abs().max())
            if known[self._code]:
                return ours_BW
            self.cache.truncate(length)
        return (self._run if known[self._code] else self._run_twin)(ids_B, attention_mask)

    @property
    def agrees(self) -> bool:
        """Whether the kernel is what runs: False before the first step, and where it differs from the twin."""
        return self._known.get(self._code, False)

    def _run_twin(self, ids_B: Tensor, attention_mask: Tensor | None) -> Float[Tensor, "B W"]:
        return decode_step(self.model, self.cache, ids_B, attention_mask)

    def _run(self, ids_B: Tensor, attention_mask: Tensor | None) -> Float[Tensor, "B W"]:
        length = self.cache.length
        if attention_mask is None:
            positions_B, keep_BS = torch.full_like(ids_B, length), None
        else:
            positions_B = token_positions(attention_mask[:, : length + 1])[:, -1]
            keep_BS = attention_mask[:, : length + 1].bool()
        rotary_B1H = rotary_tables(self._inv_freq, positions_B[:, None], torch.float32)
        logits_BW = self._step(self.embedding[ids_B].float(), rotary_B1H, keep_BS)
        self.cache.advance(1)
        return logits_BW


def _code() -> tuple[object, ...]:
    """The functions that a step of the twin runs."""
    classes = (Decoder, DecoderBlock, DecoderAttention, SwiGLU, RMSNorm)
    methods = (*(kind.forward for kind in classes), Decoder.logits, KVCache.write)
    imported = (value for value in vars(twin).values() if isinstance(value, FunctionType))
    return (*methods, *imported, token_positions)


def fused_decoding(model: VideoLlava, cache: KVCache) -> FusedDecoding | None:
    """The fused step for a model and a cache, or None where it cannot be had or would not compute the same."""
    decoder = model.text_tower
    if not _is_usual(decoder, cache):
        return None
    kernels, _ = find_kernels()
    if kernels is None:
        return None
    known: Agreement = vars(decoder).setdefault(_AGREES, {})
    if decoder.compute_dtype in HALF_DTYPES and model.wide_steps:
        model = with_wide_text_tower(model)
    return FusedDecoding(kernels, model, cache, known) if _fits(model.text_tower) else None


def _is_usual(decoder: Decoder, cache: KVCache) -> bool:
    config = decoder.config
    return (
        cache.keys.device.type == "cpu"
        and cache.keys.dtype in FLOAT_KINDS
        and cache.keys.shape[0] == len(decoder.blocks)
        and cache.keys.shape[1] <= MAX_ROWS
        and config.activation in ("silu", "swish")
        and config.rope.scaling != "dynamic"
        and decoder.backend == "sdpa"
        and not torch.is_autocast_enabled("cpu")
        and not has_hooks(decoder)
        and not any("forward" in vars(module) for module in decoder.modules())  # of one module alone
    )


def _fits(decoder: Decoder) -> bool:
    config, in_float32 = decoder.config, decoder.compute_dtype == torch.float32
    return in_float32 and all(_is_plain(block, config) for block in decoder.blocks) and _is_plain_end(decoder)


def _is_plain(block: nn.Module, config: TextConfig) -> bool:
    """Whether a block is what the kernel takes it for, with the weights that the configuration describes."""
    if type(block) is not DecoderBlock:
        return False
    attention, mlp = block.attention, block.mlp
    if type(attention) is not DecoderAttention or type(mlp) is not SwiGLU or mlp.activation is not functional.silu:
        return False
    width, inner = config.hidden_size, config.intermediate_size
    asked, kept = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    shapes = [
        (attention.q_proj, asked, width),
        (attention.k_proj, kept, width),
        (attention.v_proj, kept, width),
        (attention.o_proj, width, asked),
        (mlp.gate_proj, inner, width),
        (mlp.up_proj, inner, width),
        (mlp.down_proj, width, inner),
    ]
    norms = (block.attention_norm, block.mlp_norm)
    return all(_is_matrix(*shape) for shape in shapes) and all(_is_norm(norm, config) for norm in norms)


def _is_plain_end(decoder: Decoder) -> bool:
    config = decoder.config
    table = type(decoder.token_embedding) in (nn.Embedding, WideEmbedding)
    head = _is_matrix(decoder.lm_head, config.vocab_size, config.hidden_size)
    return table and head and _is_norm(decoder.final_norm, config)


def _is_matrix(linear: nn.Module, rows: int, cols: int) -> bool:
    if type(linear) not in (nn.Linear, StoredLinear):
        return False
    stored = _stored(linear)
    return stored.is_readable and (stored.rows, stored.cols) == (rows, cols)


def _is_norm(norm: nn.Module, config: TextConfig) -> bool:
    if type(norm) is not RMSNorm or norm.eps != config.rms_norm_eps:
        return False
    weight = norm.weight
    plain = weight.dtype == torch.float32 and weight.is_contiguous() and weight.device.type == "cpu"
    return plain and weight.shape == (config.hidden_size,)


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
