"""`decode_step` through `torch.compile`, as a CUDA graph on a GPU.

A graph is for fixed shapes. So attention reads every slot of the cache, masked past the current one, new keys and
values go to a slot that is a value and no size, and the capacity is rounded up: it compiles once for each size of batch
and cache. Attention over empty slots costs a little; what it saves is the time between operators.
"""

from collections.abc import Callable

import torch

from filmstrip.cache import KVCache
from filmstrip.models import VideoLlava
from filmstrip.models.decoder import Decoder
from filmstrip.models.record import has_hooks
from filmstrip.models.wide import is_stored
from filmstrip.ops.masks import AttentionMask, token_positions
from filmstrip.shapes import Bool, Float, Int, Tensor

_ROUND = 256  # slots of the cache
_MOST_SIZES = 64  # of batches and caches; the compiler gives up after 8 unless it is told
_Step = Callable[..., Tensor]


class FixedSlots(KVCache):
    """The tensors of a cache as a graph sees them: a token is written to slot `slot_1`, all slots are read."""

    def __init__(self, keys: Tensor, values: Tensor, slot_1: Int[Tensor, "one"]) -> None:
        self.keys, self.values, self.slot_1 = keys, values, slot_1
        self.length = 0

    def write(
        self, layer: int, k_BKTH: Float[Tensor, "B K one H"], v_BKTH: Float[Tensor, "B K one H"]
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H"]]:
        """Store one token; return all slots, the empty ones too."""
        self.keys[layer].index_copy_(2, self.slot_1, k_BKTH.to(self.keys.dtype))
        self.values[layer].index_copy_(2, self.slot_1, v_BKTH.to(self.values.dtype))
        return self.keys[layer], self.values[layer]


class CompiledDecoding:
    """The text tower's step for one cache, which grows to a round size first."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.cache = cache
        cache.reserve(_rounded(cache.capacity))
        for tensor in (cache.keys, cache.values):
            tensor[:, :, :, cache.length :] = 0  # what was never written may be NaN, which no mask takes away
            torch._dynamo.mark_static_address(tensor)  # a CUDA graph writes to it in place
        self._keep_BS = torch.zeros(cache.keys.shape[1], cache.capacity, dtype=torch.bool, device=cache.keys.device)
        if "_compiled_step" not in vars(decoder):
            vars(decoder)["_compiled_step"] = _compile(decoder, cache.keys.device)
        self._step: _Step = vars(decoder)["_compiled_step"]

    def __call__(
        self, ids_B: Int[Tensor, "B"], attention_mask: Int[Tensor, "B S"] | None = None
    ) -> Float[Tensor, "B W"]:
        """As `step.decode_step`: one new token per row; logits of the token after it."""
        cache, length = self.cache, self.cache.length
        cache.require(length + 1)
        if attention_mask is None:
            self._keep_BS[:, : length + 1] = True
            positions_B = torch.full_like(ids_B, length)
        else:
            self._keep_BS[:, : length + 1] = attention_mask[:, : length + 1].bool()
            positions_B = token_positions(attention_mask[:, : length + 1])[:, -1].contiguous()
        slot_1 = torch.tensor([length], device=ids_B.device)
        logits_BW = self._step(cache.keys, cache.values, ids_B, slot_1, positions_B, self._keep_BS)
        cache.advance(1)
        return logits_BW.clone()  # a CUDA graph writes its next result to the same place


def compiled_decoding(model: VideoLlava, cache: KVCache) -> CompiledDecoding | None:
    """The compiled step, or None where hooks want to see every module run, layers unpack their own weights, or so many
    sizes are compiled already that the compiler would give up.
    """
    decoder = model.text_tower
    if is_stored(decoder) or has_hooks(decoder):
        return None
    sizes: set[tuple[int, int]] = vars(decoder).setdefault("_compiled_sizes", set())  # it lives as long as the model
    size = (cache.keys.shape[1], _rounded(cache.capacity))
    if size not in sizes and len(sizes) >= _MOST_SIZES:
        return None
    sizes.add(size)
    return CompiledDecoding(decoder, cache)


def _rounded(capacity: int) -> int:
    return -(-capacity // _ROUND) * _ROUND


def _compile(decoder: Decoder, device: torch.device) -> _Step:
    def step(
        keys: Tensor,
        values: Tensor,
        ids_B: Int[Tensor, "B"],
        slot_1: Int[Tensor, "one"],
        positions_B: Int[Tensor, "B"],
        keep_BS: Bool[Tensor, "B S"],
    ) -> Float[Tensor, "B W"]:
        mask = AttentionMask(keep_BTS=keep_BS[:, None])
        x_BTD = decoder.token_embedding(ids_B[:, None])
        hidden_BTD = decoder(x_BTD, positions_B[:, None], mask, FixedSlots(keys, values, slot_1))
        return decoder.logits(hidden_BTD)[:, 0]

    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, _MOST_SIZES)
    graphs = "reduce-overhead" if device.type == "cuda" else None
    compiled: _Step = torch.compile(step, dynamic=False, fullgraph=True, mode=graphs)
    return compiled
