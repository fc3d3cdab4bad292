"""Keys and values: the pool of pages, the prefixes that stay in it, and the content keys that both are found by."""

from ruprompt_fast.backends.cpu.kv_pool import HostPages, KVPool, LayerShape
from ruprompt_fast.cache.hashing import model_identity, page_hashes, prefix_key
from ruprompt_fast.cache.prefix_cache import PrefixCache, PrefixCacheStats, PrefixEntry, PrefixPages

__all__ = [
    "HostPages",
    "KVPool",
    "LayerShape",
    "PrefixCache",
    "PrefixCacheStats",
    "PrefixEntry",
    "PrefixPages",
    "model_identity",
    "page_hashes",
    "prefix_key",
]
