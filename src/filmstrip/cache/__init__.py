"""Key/value caches of the text tower, and a store of tensors by what they were made from."""

from filmstrip.cache.static import KVCache, kv_cache_bytes
from filmstrip.cache.store import ContentStore

__all__ = ["ContentStore", "KVCache", "kv_cache_bytes"]
