"""The linear layers and dropouts of a model, and which of them can be packed."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from ruprompt_fast.backends.base import Quantization
    from ruprompt_fast.backends.packing.formats import WeightFormats


@dataclass(frozen=True)
class Place:
    """A linear layer and its place: child ``name`` of ``parent``, at ``path`` in the model."""

    path: str
    parent: nn.Module
    name: str
    module: nn.Linear | Conv1D


def linear_places(model: nn.Module) -> Iterator[Place]:
    """Every linear layer of a model with its place."""
    for path, parent in model.named_modules():
        for name, child in parent._modules.items():
            if isinstance(child, (nn.Linear, Conv1D)):
                yield Place(f"{path}.{name}" if path else name, parent, name, child)


def dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Parent and name of every dropout module that returns its input unchanged."""
    for parent in model.modules():
        for name, child in parent._modules.items():
            if type(child) is nn.Dropout and not child.training and not has_hooks(child):
                yield parent, name


def reason_to_skip(
    place: Place, formats: WeightFormats, quantization: Quantization | None, is_kept: bool
) -> str | None:
    """Why a layer cannot be packed; None if it can.

    Args:
        place: the layer.
        formats: the forms that its weight may take.
        quantization: how its weight is quantized, or None.
        is_kept: whether it is packed already and has no plain weight.
    """
    module, weight = place.module, place.module.weight
    if type(module) is not nn.Linear and type(module) is not Conv1D:
        return f"{type(module).__name__} is a class of its own"
    if not formats.takes(weight, quantization):
        return f"nothing packs {weight.dtype} {list(weight.shape)} on {weight.device}"
    if module.bias is not None and (module.bias.dtype is not weight.dtype or module.bias.device != weight.device):
        return f"its bias is {module.bias.dtype} on {module.bias.device}"
    if has_hooks(module):
        return "it has hooks"
    if _reads_weight(type(place.parent), place.name):
        return f"{type(place.parent).__name__} reads its weight"
    if is_kept:
        return None
    if weight.is_cpu and weight.is_shared():  # on another device it always says so
        return "other processes share its memory"
    if quantization and not bool(torch.isfinite(torch.stack(torch.aminmax(weight.detach()))).all()):
        return "its weight contains NaN or infinity"
    return None


def has_hooks(module: nn.Module) -> bool:
    """Whether something other than the class's own ``forward`` runs."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _reads_weight(parent: type[nn.Module], name: str) -> bool:
    """Whether the forward of a class reads ``self.<name>.weight``, as T5's does for its dtype at every call."""
    try:
        source = inspect.getsource(parent.forward)
    except (OSError, TypeError):
        return False
    return f"self.{name}.weight" in source
