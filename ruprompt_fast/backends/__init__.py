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
    RunnerStats,
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
    "RunnerStats",
    "StepBatch",
    "backend_for",
]


def _cpu(device: torch.device, dtype: torch.dtype) -> Backend:
    return CpuBackend(dtype)


def _cuda(device: torch.device, dtype: torch.dtype) -> Backend:
    from ruprompt_fast.backends.cuda import CudaBackend  # imports what only a card needs

    return CudaBackend(device, dtype)


BACKENDS: dict[str, Callable[[torch.device, torch.dtype], Backend]] = {"cpu": _cpu, "cuda": _cuda}
"""The backends, by torch's names for kinds of devices; each is made for the device and the dtype of a model."""


def backend_for(device: torch.device, dtype: torch.dtype) -> Backend:
    """The backend of a device; the only place that looks at what kind of device there is.

    Raises:
        UnsupportedModelError: the device has none, or nothing that is installed has code for it.
    """
    make = BACKENDS.get(device.type)
    if make is None:
        raise UnsupportedModelError(f"the engine runs on {', '.join(BACKENDS)}; the model is on {device}.")
    return make(device, dtype)
