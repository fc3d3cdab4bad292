"""How much an engine may take."""

from __future__ import annotations

from dataclasses import dataclass

from ruprompt_fast.backends import Quantization
from ruprompt_fast.errors import SettingError, shown

MAX_BATCH_SIZE = 1 << 14
MAX_STEP_TOKENS = 1 << 20
MAX_THREADS = 1 << 10
"""Largest sizes: a step makes arrays of so many entries before anything is asked for."""

_MOST_BYTES = 1 << 62


@dataclass(frozen=True)
class EngineOptions:
    """How much an engine may take.

    Attributes:
        max_batch_size: maximum number of concurrent sequences.
        max_step_tokens: tokens of one step at most; longer inputs are computed in chunks between the others' tokens.
        kv_cache_bytes: memory for keys and values; None takes what ``max_batch_size`` full contexts need, but at most
            a quarter of the free memory, or of a GPU's the share ``gpu_memory_fraction``.
        gpu_memory_fraction: on a GPU the most that ``kv_cache_bytes=None`` takes of what weights and steps leave free.
        prefix_cache_bytes: of that, for the prefixes of prompts, all together; None sets no limit of its own. A request
            whose prefix alone is larger is refused.
        host_cache_bytes: host memory for prefixes that had to leave the pages.
        quantization: ``"int8"`` keeps the weights of the frozen matrices as 8-bit integers.
        threads: how many threads compute; None takes the caller's ``torch.get_num_threads()``, and fewer for as long as
            other programs take processors.

    Raises:
        SettingError: a size that cannot work.
    """

    max_batch_size: int = 64
    max_step_tokens: int = 512
    kv_cache_bytes: int | None = None
    gpu_memory_fraction: float = 0.9
    prefix_cache_bytes: int | None = None
    host_cache_bytes: int = 1 << 30
    quantization: Quantization | None = None
    threads: int | None = None

    def __post_init__(self) -> None:
        bounds = {
            "max_batch_size": (1, MAX_BATCH_SIZE),
            "max_step_tokens": (1, MAX_STEP_TOKENS),
            "kv_cache_bytes": (1, _MOST_BYTES),
            "prefix_cache_bytes": (0, _MOST_BYTES),
            "host_cache_bytes": (0, _MOST_BYTES),
            "threads": (1, MAX_THREADS),
        }
        for name, (least, most) in bounds.items():
            value = getattr(self, name)
            if value is None and name in ("kv_cache_bytes", "prefix_cache_bytes", "threads"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise SettingError(
                    f"{name} must be an integer of at least {least} and at most {most}; found {shown(value)}."
                )
        share = self.gpu_memory_fraction
        if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
            raise SettingError(f"gpu_memory_fraction must be a number above 0 and at most 1; found {shown(share)}.")
        if self.quantization not in (None, "int8"):
            raise SettingError(f"quantization must be 'int8' or None; found {shown(self.quantization)}.")
        if self.max_step_tokens < self.max_batch_size:
            raise SettingError(
                f"max_step_tokens={self.max_step_tokens} must be at least max_batch_size={self.max_batch_size}: every "
                "running sequence decodes one token in a step."
            )
