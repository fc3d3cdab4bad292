"""The numbers of a provider: float32 at least, whatever the dtype of the model that it is for, and finite.

An update of a half-precision number by a thousandth of it is lost, and half-precision networks overflow. Rows are
converted where they are looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def training_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of numbers that train before a model of this dtype: its own, or float32 if that is wider."""
    return dtype if dtype.itemsize >= torch.float32.itemsize else torch.float32


def without_autocast(device: torch.device) -> torch.autocast:
    """Within the block a provider computes in its own precision: half-precision networks of this kind overflow."""
    return torch.autocast(device.type, enabled=False)


def widen(module: nn.Module) -> None:
    """Make a provider's half-precision numbers float32; the parameters stay the same objects."""
    module._apply(lambda tensor: _widened(tensor, tensor))


def are_finite(tensors: Iterable[Tensor | None]) -> bool:
    """Whether no tensor holds NaN or infinity."""
    # The extremes are NaN if any number is, and take no memory, unlike isfinite() of all; one number leaves the device.
    found = [tensor.detach() for tensor in tensors if tensor is not None and tensor.numel()]
    extremes = [torch.stack(torch.aminmax(tensor)).double() for tensor in found]
    return not extremes or bool(torch.cat(extremes).isfinite().all())


class PreciseModules(nn.ModuleList):
    """Providers that stay in float32 when the model around them is converted to half precision or loads such weights.

    Moves to another device, and conversions to float32 and float64, do what they say.
    """

    def __init__(self) -> None:
        super().__init__()
        # assign=True puts the loaded tensors there themselves.
        self.register_load_state_dict_post_hook(_widen_loaded)  # type: ignore[no-untyped-call]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PreciseModules:
        super()._apply(lambda tensor: _widened(fn(tensor), tensor), recurse)  # type: ignore[no-untyped-call]
        return self


def _widened(converted: Tensor, original: Tensor) -> Tensor:
    """What was converted, or the original on the same device if it would lose precision by that."""
    dtype = training_dtype(converted.dtype)
    if not converted.is_floating_point() or dtype == converted.dtype:
        return converted
    return original.to(device=converted.device, dtype=dtype)


def _widen_loaded(module: nn.Module, incompatible_keys: Any) -> None:
    widen(module)
