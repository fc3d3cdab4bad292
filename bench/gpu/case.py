"""A kernel with its inputs on the device, and how they are made."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpu.measurement import Setting


@dataclass(frozen=True)
class Case:
    """A kernel with its inputs on the device.

    Attributes:
        run: launches it and returns what it computes.
        reference: the same in plain PyTorch.
        num_bytes: what it has to read and write at least.
        comparable: what is to be equal of the results of both.
    """

    run: Callable[[], Any]
    reference: Callable[[], Any]
    num_bytes: int
    comparable: Callable[[Any], Any] = lambda result: result


def dtype_of(setting: Setting) -> torch.dtype:
    """What kernels are measured in."""
    return torch.float16 if setting.on_card else torch.float32


def randn(setting: Setting, *shape: int) -> Tensor:
    """Normal numbers, the same for the same shape."""
    generator = torch.Generator(setting.device).manual_seed(0)
    return torch.randn(shape, generator=generator, device=setting.device).to(dtype_of(setting))
