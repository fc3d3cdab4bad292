"""The forms that frozen weights take on a device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ruprompt_fast.ops.activation import Activation
from ruprompt_fast.ops.packed_linear import PlainWeight

if TYPE_CHECKING:
    from typing_extensions import Self

    from ruprompt_fast.backends.base import Quantization

    Takes = Callable[[torch.dtype, torch.device], bool]


class LinearWeight(Protocol):
    """A weight ``[out_features, in_features]`` in any form; see :mod:`ruprompt_fast.ops.packed_linear`."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that it takes."""
        ...

    def dense(self) -> Tensor:
        """The weight in plain form."""
        ...

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """``activation(x @ weight.T + bias)``."""
        ...


class QuantizedWeight(LinearWeight, Protocol):
    """A weight in int8."""

    def quantized(self) -> tuple[Tensor, Tensor]:
        """The values, int8 ``[out_features, in_features]``, and scales, float32 ``[out_features]``."""
        ...

    def with_dtype(self, dtype: torch.dtype) -> Self:
        """The same values and scales for inputs of another dtype."""
        ...


@dataclass(frozen=True)
class WeightFormats:
    """What a device makes of frozen weights.

    Attributes:
        packed: makes the form that keeps every bit.
        can_pack: whether there is one for weights of this dtype and device.
        quantized: the class of weights in int8.
        can_quantize: whether it takes weights of this dtype and device.
    """

    packed: Callable[[Tensor], LinearWeight]
    can_pack: Takes
    quantized: Callable[[Tensor], QuantizedWeight]
    can_quantize: Takes

    def takes(self, weight: Tensor, quantization: Quantization | None) -> bool:
        """Whether a weight can be packed, or quantized if that is asked for."""
        can = self.can_quantize if quantization else self.can_pack
        return weight.numel() > 0 and can(weight.dtype, weight.device)

    def form_of(self, weight: Tensor, quantization: Quantization | None) -> LinearWeight:
        """The fastest form of a weight on its device and in its dtype, in int8 on request."""
        if quantization and self.takes(weight, quantization):
            return self.quantized(weight)
        return self.packed(weight) if self.takes(weight, None) else PlainWeight(weight)
