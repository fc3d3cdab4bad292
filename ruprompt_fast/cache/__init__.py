"""The KV cache: its pages, the prefixes that stay in it, and the content keys by which both are found."""

from ruprompt_fast.cache.hashing import model_identity, page_hashes, prefix_key
from ruprompt_fast.cache.pages import HostPages, PageIndices, PagePool, num_pages_of
from ruprompt_fast.cache.prefix_cache import PrefixCache, PrefixCacheStats, PrefixEntry, PrefixPages

__all__ = [
    "HostPages",
    "PageIndices",
    "PagePool",
    "PrefixCache",
    "PrefixCacheStats",
    "PrefixEntry",
    "PrefixPages",
    "model_identity",
    "num_pages_of",
    "page_hashes",
    "prefix_key",
]
