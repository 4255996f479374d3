"""A key/value cache of fixed capacity, allocated once.

Decoding appends one slot a step; growing tensors by concatenation would copy the whole cache for every token.
The cache is an argument of the decoder and never advances by itself: the generation loop calls `advance` after all
layers have written, so a layer can be called twice, or alone, without side effects.
"""

from collections.abc import Mapping

import torch

from filmstrip.config import TextConfig
from filmstrip.errors import FilmstripError
from filmstrip.shapes import Float, Tensor


def kv_cache_bytes(config: TextConfig, rows: int, capacity: int, b: int) -> int:
    """Bytes of a `KVCache` whose numbers take `b` bytes: keys and values of every layer, allocated at once."""
    return 2 * config.num_layers * rows * config.num_kv_heads * capacity * config.head_dim * b


class KVCache:
    """Keys (after rotation) and values of every layer, shape (layer, B, K, capacity, H) each.

    Rows of a batch share slots: with left padding every row ends in the same slot.
    """

    def __init__(
        self, config: TextConfig, batch_size: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        shape = (config.num_layers, batch_size, config.num_kv_heads, capacity, config.head_dim)
        self.keys = torch.empty(shape, dtype=dtype, device=device)
        self.values = torch.empty(shape, dtype=dtype, device=device)
        self.length = 0

    @property
    def capacity(self) -> int:
        """Slots allocated per row."""
        return self.keys.shape[3]

    def write(
        self, layer: int, k_BKTH: Float[Tensor, "B K T H"], v_BKTH: Float[Tensor, "B K T H"]
    ) -> tuple[Float[Tensor, "B K S H"], Float[Tensor, "B K S H"]]:
        """Store T new slots after the current length; return all S slots filled so far, as views.

        Raises `FilmstripError` when the capacity does not suffice.
        """
        end = self.length + k_BKTH.shape[2]
        self.require(end)
        self.keys[layer, :, :, self.length : end] = k_BKTH
        self.values[layer, :, :, self.length : end] = v_BKTH
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, num_tokens: int) -> None:
        """Count `num_tokens` slots as filled; called once per step, after every layer has written."""
        self.length += num_tokens

    @property
    def filled_bytes(self) -> int:
        """Bytes of the filled slots."""
        return 2 * self.keys[:, :, :, : self.length].numel() * self.keys.element_size()

    def copy(self) -> dict[str, Tensor]:
        """The filled slots, in memory of their own on the CPU."""
        filled = {"keys": self.keys, "values": self.values}
        return {name: tensor[:, :, :, : self.length].to("cpu", copy=True) for name, tensor in filled.items()}

    def load(self, filled: Mapping[str, Tensor]) -> None:
        """Take back what `copy` gave, as the first slots. Raises `FilmstripError` where the capacity is too small."""
        length = filled["keys"].shape[3]
        self.require(length)
        self.keys[:, :, :, :length] = filled["keys"]
        self.values[:, :, :, :length] = filled["values"]
        self.length = length

    def truncate(self, length: int) -> None:
        """Forget every slot from `length` on (a conversation that continues from an earlier point)."""
        self.length = min(self.length, length)

    def reserve(self, capacity: int) -> None:
        """Make room for `capacity` slots, keeping the filled ones; copies once when it has to grow."""
        if capacity <= self.capacity:
            return
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = torch.empty((*old.shape[:3], capacity, old.shape[4]), dtype=old.dtype, device=old.device)
            new[:, :, :, : self.length] = old[:, :, :, : self.length]
            setattr(self, name, new)

    def require(self, num_tokens: int) -> None:
        """Raise `FilmstripError` unless there is room for so many tokens in all."""
        if num_tokens > self.capacity:
            raise FilmstripError(f"the key/value cache holds {self.capacity} tokens and {num_tokens} are needed")
