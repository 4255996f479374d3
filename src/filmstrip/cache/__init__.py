"""Key/value caches of the text tower."""

from filmstrip.cache.static import KVCache

__all__ = ["KVCache"]
