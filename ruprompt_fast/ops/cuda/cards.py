"""What a graphics card can do, as far as the choice of a kernel depends on it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch


@dataclass(frozen=True)
class Card:
    """A CUDA device.

    Attributes:
        name: as the driver gives it.
        capability: its compute capability, (7, 0) for a V100.
    """

    name: str
    capability: tuple[int, int]

    @property
    def has_fast_dot(self) -> bool:
        """Whether ``tl.dot`` runs on tensor cores: on sm_70 and sm_75 Triton compiles it to single multiplications."""
        return self.capability >= (8, 0)


V100 = Card("V100", (7, 0))
"""The oldest card that the kernels are written for; what Triton interprets on the CPU takes its ways."""


def card_of(device: torch.device) -> Card:
    """The card behind a device; for the CPU, where Triton interprets, a V100."""
    if device.type != "cuda":
        return V100
    return _card(torch.cuda.current_device() if device.index is None else device.index)


@lru_cache(maxsize=16)
def _card(index: int) -> Card:
    return Card(torch.cuda.get_device_name(index), torch.cuda.get_device_capability(index))
