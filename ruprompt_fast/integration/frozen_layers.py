"""The linear layers and activations of a frozen model, computed faster while a prompt trains through them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from ruprompt_fast.integration.activations import slow_activations
from ruprompt_fast.ops import frozen_linear
from ruprompt_fast.ops.activation import activate
from ruprompt_fast.ops.frozen_linear import is_faster_frozen


class FrozenLayers:
    """Replaces how a model's layers compute, without changing the result, and restores their own way afterwards.

    Linear layers call :func:`~ruprompt_fast.ops.frozen_linear` where that is faster, in float32 on a CPU, and
    activations that take many passes in transformers take one. Layers that train, that other code has given a new
    ``forward``, or that run under autocast are not changed.

    Args:
        model: the model, frozen.
    """

    def __init__(self, model: nn.Module) -> None:
        self._linear: list[Any] = [module for module in model.modules() if _is_plain(module)]
        self._activations: list[tuple[nn.Module, Callable[[Tensor], Tensor]]] = [
            (parent.get_submodule(name), partial(activate, activation=activation))
            for parent, name, activation in slow_activations(model)
        ]

    @contextmanager
    def fast(self) -> Iterator[None]:
        """Within the block, forward and backward are computed the other way."""
        forwards = [
            *((module, partial(_linear, module)) for module in self._linear if is_faster_frozen(module.weight)),
            *self._activations,
        ]
        for module, forward in forwards:
            module.forward = forward
        try:
            yield
        finally:
            for module, _ in forwards:
                vars(module).pop("forward", None)


def _linear(module: nn.Linear | Conv1D, x: Tensor) -> Tensor:
    weight, bias = module.weight, module.bias
    trains = weight.requires_grad or (bias is not None and bias.requires_grad)
    if (trains and torch.is_grad_enabled()) or torch.is_autocast_enabled(x.device.type):
        own_forward: Any = type(module).forward
        return cast(Tensor, own_forward(module, x))
    return frozen_linear(x, weight, bias, isinstance(module, Conv1D))


def _is_plain(module: nn.Module) -> bool:
    """Whether a linear layer does what its class says: a subclass, or a forward of its own, may do something else."""
    return type(module) in (nn.Linear, Conv1D) and "forward" not in vars(module)
