"""Linear layers of frozen weights, kept in whatever layout a device multiplies fastest from.

A weight is prepared once and computes many times, so the operator is a method of the prepared weight:
:class:`~ruprompt_fast.ops.cpu.packed_linear.PackedWeight` on the CPU, :class:`PlainWeight` where nothing is prepared.
Whoever knows the device makes it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.ops.activation import Activation, activate


def packed_linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """What every layout of a weight computes, in plain PyTorch.

    Semantics::

        out = activation(x @ weight.T + bias)

    Args:
        x: ``[..., in_features]``.
        weight: ``[out_features, in_features]``.
        bias: ``[out_features]``.
        activation: applied to the sum.

    Returns:
        ``[..., out_features]`` of ``x``'s dtype.
    """
    return activate(F.linear(x, weight, bias), activation)


class PlainWeight:
    """A weight as it is, where there is no better layout: on another device, in another dtype.

    Args:
        weight: ``[out_features, in_features]``.
    """

    def __init__(self, weight: Tensor) -> None:
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device
        self._weight = weight

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the weight takes."""
        return self._weight.nbytes

    def dense(self) -> Tensor:
        """The weight, ``[out_features, in_features]``."""
        return self._weight

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """:func:`packed_linear_reference` with this weight."""
        return packed_linear_reference(x, self._weight, bias, activation)
