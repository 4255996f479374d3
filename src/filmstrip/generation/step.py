"""The two steps of generation: read the prompt once, then one token at a time."""

import torch

from filmstrip.cache import KVCache
from filmstrip.models import VideoLlava
from filmstrip.shapes import Float, Int, Tensor


def prefill(
    model: VideoLlava,
    cache: KVCache,
    x_BTD: Float[Tensor, "B T D"],
    attention_mask: Int[Tensor, "B S"] | None = None,
) -> Float[Tensor, "B W"]:
    """Run T fused embeddings after the cache's current end; fill the cache; logits of the last position only."""
    hidden_BTD = model.decode(x_BTD, attention_mask, cache)
    cache.advance(x_BTD.shape[1])
    return model.text_tower.logits(hidden_BTD[:, -1:])[:, 0]


def decode_step(
    model: VideoLlava,
    cache: KVCache,
    ids_B: Int[Tensor, "B"],
    attention_mask: Int[Tensor, "B S"] | None = None,
) -> Float[Tensor, "B W"]:
    """Run one new token per row; logits of the token after it."""
    return prefill(model, cache, model.text_tower.token_embedding(ids_B[:, None]), attention_mask)


def new_cache(model: VideoLlava, batch_size: int, capacity: int) -> KVCache:
    """An empty cache in the model's dtype and on its device."""
    weight = model.text_tower.token_embedding.weight
    return KVCache(model.text_tower.config, batch_size, capacity, weight.dtype, torch.device(weight.device))
