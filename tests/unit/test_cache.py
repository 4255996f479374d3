"""The key/value cache as a container: what was written can be read, whatever was reserved or cut in between."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from filmstrip.cache import KVCache
from filmstrip.config import TextConfig
from filmstrip.errors import FilmstripError

CONFIG = TextConfig(
    vocab_size=10, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=4
)


def new_cache(capacity: int, dtype: torch.dtype = torch.float32) -> KVCache:
    return KVCache(CONFIG, 2, capacity, dtype, torch.device("cpu"))


def write(cache: KVCache, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Write `count` random slots in every layer and advance; what each layer was given."""
    given = [(torch.randn(2, 1, count, 4), torch.randn(2, 1, count, 4)) for _ in range(CONFIG.num_layers)]
    for layer, (k, v) in enumerate(given):
        cache.write(layer, k, v)
    cache.advance(count)
    return given


def test_write_returns_everything_so_far_as_views() -> None:
    cache = new_cache(8)
    first = write(cache, 3)
    k, v = torch.randn(2, 1, 2, 4), torch.randn(2, 1, 2, 4)
    keys, values = cache.write(1, k, v)
    assert torch.equal(keys, torch.cat([first[1][0], k], dim=2))
    assert torch.equal(values, torch.cat([first[1][1], v], dim=2))
    assert keys.untyped_storage().data_ptr() == cache.keys.untyped_storage().data_ptr()


def test_writing_alone_advances_nothing() -> None:
    """A layer may be called twice, or alone, and the second write replaces the first."""
    cache = new_cache(4)
    k = torch.randn(2, 1, 2, 4)
    cache.write(0, torch.zeros_like(k), k)
    keys, _ = cache.write(0, k, k)
    assert cache.length == 0
    assert torch.equal(keys, k)


def test_layers_are_separate() -> None:
    cache = new_cache(4)
    given = write(cache, 2)
    assert all(torch.equal(cache.keys[layer, :, :, :2], k) for layer, (k, _) in enumerate(given))


@pytest.mark.parametrize(("filled", "more"), [(0, 5), (3, 2), (4, 1)])
def test_past_the_capacity(filled: int, more: int) -> None:
    cache = new_cache(4)
    write(cache, filled)
    with pytest.raises(FilmstripError, match=f"^the key/value cache holds 4 tokens and {filled + more} are needed$"):
        write(cache, more)
    assert cache.length == filled


def test_dtype_is_kept_when_it_grows() -> None:
    cache = new_cache(2, torch.bfloat16)
    cache.reserve(5)
    assert cache.capacity == 5
    assert cache.keys.dtype == cache.values.dtype == torch.bfloat16


def test_reserving_less_keeps_the_memory() -> None:
    cache = new_cache(6)
    before = cache.keys.data_ptr()
    cache.reserve(3)
    assert (cache.capacity, cache.keys.data_ptr()) == (6, before)


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["write", "truncate", "reserve"]), st.integers(0, 12)), min_size=1, max_size=12
)


@given(OPERATIONS)
@settings(max_examples=80, deadline=None)
def test_against_growing_tensors(operations: list[tuple[str, int]]) -> None:
    """Any order of writing, cutting and reserving holds what plain concatenation would."""
    cache = new_cache(1)
    expected = torch.zeros(2, CONFIG.num_layers, 2, 1, 0, 4)  # keys and values
    for operation, number in operations:
        if operation == "write":
            cache.reserve(cache.length + number)
            given = write(cache, number)
            new = torch.stack([torch.stack([pair[part] for pair in given]) for part in (0, 1)])
            expected = torch.cat([expected, new], dim=4)
        elif operation == "truncate":
            cache.truncate(number)
            expected = expected[:, :, :, :, :number]
        else:
            cache.reserve(number)
        assert cache.length == expected.shape[4] <= cache.capacity
        assert torch.equal(cache.keys[:, :, :, : cache.length], expected[0])
        assert torch.equal(cache.values[:, :, :, : cache.length], expected[1])
