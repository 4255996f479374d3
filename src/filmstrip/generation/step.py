"""The two steps of generation: read the prompt once, then one token at a time."""

from collections.abc import Callable

import torch

from filmstrip.cache import KVCache
from filmstrip.config import TextConfig
from filmstrip.models import VideoLlava
from filmstrip.shapes import Float, Int, Tensor

CHUNK = 512  # tokens: enough for products at full rate, few enough that activations stay small
OnChunk = Callable[[int, int], None]


def prefill(
    model: VideoLlava,
    cache: KVCache,
    x_BTD: Float[Tensor, "B T D"],
    attention_mask: Int[Tensor, "B S"] | None = None,
    on_chunk: OnChunk = lambda done, total: None,
    beginning: int = 0,
) -> Float[Tensor, "B W"]:
    """Run T fused embeddings after the cache's current end; fill the cache; logits of the last position only.

    A long prompt is read `CHUNK` tokens at a time, so that activations do not grow with it. `on_chunk` is told after
    each how many of the T are read; what it raises ends the work, and the cache holds what was read until then. The
    first `beginning` tokens are chunks of their own, so that their keys and values do not depend on what follows.
    """
    total = x_BTD.shape[1]
    chunk = chunk_tokens(model.config.text, total, cache.length + total)
    parts = [x_BTD[:, :beginning], x_BTD[:, beginning:]] if 0 < beginning < total else [x_BTD]
    *earlier, last_BTD = [piece_BTD for part_BTD in parts for piece_BTD in torch.split(part_BTD, chunk, dim=1)]
    done = 0
    for piece_BTD in earlier:
        _read(model, cache, piece_BTD, attention_mask)
        done += piece_BTD.shape[1]
        on_chunk(done, total)
    hidden_B1D = _read(model, cache, last_BTD, attention_mask)
    on_chunk(total, total)
    return model.text_tower.logits(hidden_B1D)[:, 0]


def chunk_tokens(config: TextConfig, new: int, total: int) -> int:
    """How many of `new` tokens are read at once, where the prompt has `total`.

    All of them where rotary frequencies depend on the whole length (`dynamic` scaling, past the trained length).
    """
    return new if config.stretches(total) else min(new, CHUNK)


def _read(model: VideoLlava, cache: KVCache, x_BTD: Tensor, attention_mask: Tensor | None) -> Float[Tensor, "B one D"]:
    end = cache.length + x_BTD.shape[1]
    mask = None if attention_mask is None else attention_mask[:, :end]
    hidden_B1D = model.decode(x_BTD, mask, cache, last=1)
    cache.advance(x_BTD.shape[1])
    return hidden_B1D


def decode_step(
    model: VideoLlava,
    cache: KVCache,
    ids_B: Int[Tensor, "B"],
    attention_mask: Int[Tensor, "B S"] | None = None,
) -> Float[Tensor, "B W"]:
    """Run one new token per row; logits of the token after it."""
    return prefill(model, cache, model.text_tower.token_embedding(ids_B[:, None]), attention_mask)


def new_cache(model: VideoLlava, batch_size: int, capacity: int) -> KVCache:
    """An empty cache on the model's device, in the precision of its arithmetic or in `model.kv_dtype`."""
    decoder = model.text_tower
    device = torch.device(decoder.token_embedding.weight.device)
    return KVCache(decoder.config, batch_size, capacity, model.kv_dtype or decoder.compute_dtype, device)
