"""Linear layers of frozen weights kept as int8 with one scale per output channel; activations stay as they are.

As in :mod:`ruprompt_fast.ops.packed_linear`, the operator is a method of the prepared weight:
:class:`~ruprompt_fast.ops.cpu.int8_linear.Int8Weight` on the CPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.activation import Activation, activate
from ruprompt_fast.ops.packed_linear import packed_linear_reference

_MAX_VALUE = 127


def quantize(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight rounded to int8, symmetrically and per output channel.

    Semantics::

        scale[n]     = max over k of |weight[n, k]| / 127          (1 where the channel is zero)
        value[n, k]  = weight[n, k] / scale[n], rounded to the nearest integer, ties to even

    Args:
        weight: float32 ``[out_features, in_features]``.

    Returns:
        The values, int8 ``[out_features, in_features]``, and the scales, float32 ``[out_features]``.

    Raises:
        TensorArgumentError: NaN or infinity is in the weight.
    """
    largest = weight.abs().amax(dim=1)
    if not bool(torch.isfinite(largest).all()):
        bad = int((~torch.isfinite(largest)).sum())
        raise TensorArgumentError(
            f"the weight to quantize must be finite; found NaN or infinity in {bad} of its {len(largest)} channels. "
            "Check the model's file."
        )
    scales = torch.where(largest > 0, largest / _MAX_VALUE, 1.0)
    values = (weight / scales[:, None]).round_().clamp_(-_MAX_VALUE, _MAX_VALUE)
    return values.to(torch.int8), scales


def int8_linear_reference(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None = None, activation: Activation | None = None
) -> Tensor:
    """What a quantized weight computes, in plain PyTorch.

    Semantics::

        out = activation(x @ (value * scale).T + bias)       # the sum in float32, rounded once to the dtype of x

    Args:
        x: ``[..., in_features]``.
        values: int8 ``[out_features, in_features]``.
        scales: float32 ``[out_features]``.
        bias: ``[out_features]``.
        activation: applied to the sum.
    """
    weight = values.float() * scales[:, None]
    total = packed_linear_reference(x.float(), weight, None if bias is None else bias.float())
    return activate(total.to(x.dtype), activation)
