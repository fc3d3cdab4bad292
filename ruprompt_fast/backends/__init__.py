"""What runs a step: one backend for each kind of device, with the interface of :mod:`ruprompt_fast.backends.base`."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ruprompt_fast.backends.base import (
    Backend,
    LaunchedStep,
    PreparedModel,
    Quantization,
    Runner,
    RunnerLimits,
    StepBatch,
)
from ruprompt_fast.backends.cpu import CpuBackend
from ruprompt_fast.errors import UnsupportedModelError

__all__ = [
    "BACKENDS",
    "Backend",
    "LaunchedStep",
    "PreparedModel",
    "Quantization",
    "Runner",
    "RunnerLimits",
    "StepBatch",
    "backend_for",
]

BACKENDS: dict[str, Callable[[torch.dtype], Backend]] = {"cpu": CpuBackend}
"""The backends, by torch's names for kinds of devices; each is made for the dtype of a model."""


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of a device; the only place that looks at what kind of device there is.

    Raises:
        UnsupportedModelError: the device has none.
    """
    make = BACKENDS.get(device.type)
    if make is None:
        raise UnsupportedModelError(f"the engine runs on {', '.join(BACKENDS)}; the model is on {device}.")
    return make(dtype)
