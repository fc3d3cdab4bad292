"""Frozen weights as int8 in rows, which Triton kernels multiply from."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import rows_contiguous, runs_kernels
from ruprompt_fast.ops.activation import Activation, activate
from ruprompt_fast.ops.cuda.cards import Card, card_of
from ruprompt_fast.ops.int8_linear import int8_linear_reference, quantize

Way: TypeAlias = Literal["rows", "tile", "library"]
"""How a product is computed: row by row, in a tile on tensor cores, or by the library from the plain weight."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# 128-bit loads begin at multiples of this.
_ALIGNMENT = 16
# Up to here one reading of the weight serves all rows, and the sums take less time than the reading.
_FEW_ROWS = 4
# At 16 rows the weight is read four times, mostly from the cache, and the sums of a V100 take twice as long as reading
# it once from memory: as long as the library takes with a 16-bit weight. The plain weight costs five readings.
# All of this is reckoned, not measured.
_MOST_ROWS = 16
_MOST_TILE_ROWS = 64
# Memory of a plain weight that is made for a moment; a larger one is made in parts.
_PLAIN_BYTES = 64 << 20


class Int8Weight:
    """A weight rounded to int8 by :func:`~ruprompt_fast.ops.int8_linear.quantize`; inputs stay in the weight's dtype.

    Where no kernel runs, on the CPU without Triton's interpreter, it computes what the reference does.

    Args:
        weight: ``[out_features, in_features]``, neither of them zero, at any strides, float32, float16 or bfloat16.
        card: the card to choose kernels for; defaults to that of the weight.

    Raises:
        TensorArgumentError: a weight other than that, or one with NaN or infinity in it.
    """

    def __init__(self, weight: Tensor, card: Card | None = None) -> None:
        if weight.ndim != 2 or weight.numel() == 0 or not can_quantize(weight.dtype, weight.device):
            raise TensorArgumentError(
                "the weight to quantize must be [out_features, in_features], float32, float16 or bfloat16, and not "
                f"empty; found {weight.dtype} {list(weight.shape)} on {weight.device}"
            )
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device
        self._card = card
        out_features, in_features = weight.shape
        stride = in_features + -in_features % _ALIGNMENT
        self._values = torch.zeros((out_features, stride), dtype=torch.int8, device=weight.device)
        self._scales = torch.empty(out_features, device=weight.device)
        for part in _parts(out_features, 4 * in_features):  # an output layer in float32 is large
            self._values[part, :in_features], self._scales[part] = quantize(weight[part].detach().float())

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the values and scales take."""
        return self._values.nbytes + self._scales.nbytes

    def quantized(self) -> tuple[Tensor, Tensor]:
        """The values, int8 ``[out_features, in_features]``, and scales, float32 ``[out_features]``."""
        return self._values[:, : self.shape[1]], self._scales

    def dense(self) -> Tensor:
        """``value * scale`` in the weight's dtype, ``[out_features, in_features]``: not what was given, but near it."""
        values, scales = self.quantized()
        return (values.float() * scales[:, None]).to(self.dtype)

    def with_dtype(self, dtype: torch.dtype) -> Int8Weight:
        """The same values and scales for inputs of another dtype; the memory is shared."""
        other = copy.copy(self)
        other.dtype = dtype
        return other

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """``activation(x @ (value * scale).T + bias)``; no gradients, and no wait for the device.

        Sums run in float32 and are rounded once. For many rows the weight is rounded to the dtype first.

        Args:
            x: ``[..., in_features]`` of the weight's dtype and device, at any strides; may have no rows.
            bias: ``[out_features]`` of the weight's dtype.
            activation: applied to the sum.

        Returns:
            ``[..., out_features]``, contiguous.

        Raises:
            TensorArgumentError: ``x`` has another width, dtype or device than the weight.
        """
        out_features, in_features = self.shape
        if x.shape[-1] != in_features or x.dtype is not self.dtype or x.device != self.device:
            raise TensorArgumentError(
                f"the input must be [..., {in_features}] of {self.dtype} on {self.device}; found {list(x.shape)} of "
                f"{x.dtype} on {x.device}"
            )
        if not runs_kernels(x):
            return int8_linear_reference(x, *self.quantized(), bias, activation)
        rows = rows_contiguous(x.reshape(-1, in_features))
        bias = None if bias is None else bias.contiguous()
        out = int8_linear_cuda(rows, self._values, self._scales, bias, activation, self._card)
        return out.view(*x.shape[:-1], out_features)


def can_quantize(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :class:`Int8Weight` takes weights of this dtype and device."""
    return dtype in _DTYPES and device.type != "meta"


def int8_linear_cuda(
    x: Tensor,
    values: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    activation: Activation | None = None,
    card: Card | None = None,
) -> Tensor:
    """:func:`~ruprompt_fast.ops.int8_linear.int8_linear_reference` of ``x`` ``[rows, in_features]``.

    Args:
        x: with contiguous rows.
        values: int8 ``[out_features, in_features]``, zeros after it up to a row stride that is divisible by 16.
        scales: float32 ``[out_features]``.
        bias: ``[out_features]``, contiguous.
        activation: applied to the sum.
        card: the card to choose the way for; defaults to that of ``x``.
    """
    from ruprompt_fast.kernels import int8_linear as kernels

    out = x.new_empty((len(x), len(values)))
    if not len(x):
        return out
    way = way_of(len(x), x.dtype, card or card_of(x.device))
    with torch.cuda.device(x.get_device()):
        if way == "library":
            return _by_library(x, values, scales, bias, activation, out)
        launch = kernels.launch_tile if way == "tile" else kernels.launch_rows
        launch(x, values, scales, bias, activation, out)
    return out


def way_of(num_rows: int, dtype: torch.dtype, card: Card) -> Way:
    """How a product with so many rows is computed on a card."""
    if num_rows <= _FEW_ROWS:
        return "rows"
    if card.has_fast_dot and dtype is not torch.float32 and num_rows <= _MOST_TILE_ROWS:
        return "tile"
    return "rows" if num_rows <= _MOST_ROWS else "library"


def _by_library(
    x: Tensor, values: Tensor, scales: Tensor, bias: Tensor | None, activation: Activation | None, out: Tensor
) -> Tensor:
    from ruprompt_fast.kernels import int8_linear as kernels

    for part in _parts(len(values), x.shape[1] * x.element_size()):
        weight = x.new_empty((len(values[part]), x.shape[1]))
        kernels.launch_plain(values[part], scales[part], weight)
        if bias is None:
            torch.mm(x, weight.t(), out=out[:, part])
        else:
            torch.addmm(bias[part], x, weight.t(), out=out[:, part])
    return activate(out, activation)


def _parts(num_channels: int, bytes_per_channel: int) -> Iterator[slice]:
    """The channels of a weight, as many at once as may be plain."""
    step = max(1, _PLAIN_BYTES // bytes_per_channel)
    yield from (slice(start, min(start + step, num_channels)) for start in range(0, num_channels, step))
