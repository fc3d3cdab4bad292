"""What users see of the engine's inside."""

from __future__ import annotations

from dataclasses import dataclass

from ruprompt_fast.backends.base import RunnerStats
from ruprompt_fast.cache import PrefixCacheStats


@dataclass(frozen=True)
class EngineStats:
    """What the engine has done and holds.

    Attributes:
        scheduler: the scheduler's counts by name; ``prefix_hits`` and ``prefix_misses`` count requests that found their
            prefix on the device, or had to wait for it.
        prefix_cache: the prefix cache's.
        num_pages: pages of the pool.
        page_size: tokens of a page.
        page_bytes: bytes of a page over all layers.
        runner: what the runner has done; None where every step runs in the same way.
    """

    scheduler: dict[str, int]
    prefix_cache: PrefixCacheStats
    num_pages: int
    page_size: int
    page_bytes: int
    runner: RunnerStats | None


@dataclass(frozen=True)
class ModelStats:
    """How a model's requests run.

    Attributes:
        path: ``"engine"`` or ``"fallback"``.
        reason: why the transformers fallback; empty on the engine. Single settings may send a request there all the
            same.
        engine: the engine's counts, or None.
    """

    path: str
    reason: str
    engine: EngineStats | None
