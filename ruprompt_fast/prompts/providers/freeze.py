"""Freezing a model around its prompts."""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary, WeakSet

from torch import nn

PROVIDER_NAME = "prompt_provider"
"""What the names of the providers' parameters have in common in a patched model."""


def freeze_model(model: nn.Module) -> int:
    """Let only the prompts' providers train: every other parameter is frozen, the output layer's too.

    Args:
        model: a model that prompts are attached to.

    Returns:
        The number of parameters (numbers, not tensors) that train.
    """
    trained = 0
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(PROVIDER_NAME in name)
        trained += parameter.numel() if parameter.requires_grad else 0
    return trained


def provider_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The providers' parameters by their names in a patched model; each once, however many names it has."""
    return {name: parameter for name, parameter in model.named_parameters() if PROVIDER_NAME in name}


@dataclass
class _Frozen:
    """What trained before a model was frozen, and who needs it frozen."""

    trainable: list[nn.Parameter]
    holders: WeakSet[object] = field(default_factory=WeakSet)


_FROZEN: WeakKeyDictionary[nn.Module, _Frozen] = WeakKeyDictionary()


def freeze_for(holder: object, model: nn.Module) -> None:
    """:func:`freeze_model`, until :func:`unfreeze_for` is called for this holder and all others that still exist."""
    if model not in _FROZEN:
        ours = {id(parameter) for parameter in provider_parameters(model).values()}
        _FROZEN[model] = _Frozen([p for p in model.parameters() if p.requires_grad and id(p) not in ours])
    _FROZEN[model].holders.add(holder)
    freeze_model(model)


def unfreeze_for(holder: object, model: nn.Module) -> None:
    """Let train again what did before, unless another holder needs the model frozen."""
    frozen = _FROZEN.get(model)
    if frozen is None:
        return
    frozen.holders.discard(holder)
    if not frozen.holders:
        for parameter in frozen.trainable:
            parameter.requires_grad_(True)
        del _FROZEN[model]
