"""Frozen weights as int8 in panels, which the compiled kernel multiplies from."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES, rows_contiguous
from ruprompt_fast.ops.activation import Activation, activate
from ruprompt_fast.ops.cpu.packed_linear import input_error
from ruprompt_fast.ops.int8_linear import quantize

_DTYPES = (torch.float32, torch.bfloat16)


class Int8Weight:
    """A weight rounded to int8 by :func:`~ruprompt_fast.ops.int8_linear.quantize`; inputs stay in the weight's dtype.

    Args:
        weight: ``[out_features, in_features]``, neither of them zero, at any strides, float32 or bfloat16, on the CPU.

    Raises:
        TensorArgumentError: a weight other than that, or one with NaN or infinity in it.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 2 or weight.numel() == 0 or not can_quantize(weight.dtype, weight.device):
            raise TensorArgumentError(
                "the weight to quantize must be [out_features, in_features], float32 or bfloat16, on the CPU and not "
                f"empty; found {weight.dtype} {list(weight.shape)} on {weight.device}"
            )
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device
        values, self._scales = quantize(weight.detach().float())
        self._panels = _to_panels(values)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the values and scales take."""
        return self._panels.nbytes + self._scales.nbytes

    def quantized(self) -> tuple[Tensor, Tensor]:
        """The values, int8 ``[out_features, in_features]``, and scales, float32 ``[out_features]``."""
        return _from_panels(self._panels, self.shape[0]), self._scales

    def dense(self) -> Tensor:
        """``value * scale`` in the weight's dtype, ``[out_features, in_features]``: not what was given, but near it."""
        values, scales = self.quantized()
        return (values.float() * scales[:, None]).to(self.dtype)

    def with_dtype(self, dtype: torch.dtype) -> Int8Weight:
        """The same values and scales for inputs of another dtype, float32 or bfloat16; the memory is shared."""
        other = copy.copy(self)
        other.dtype = dtype
        return other

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """``activation(x @ (value * scale).T + bias)``; no gradients.

        Products are exact up to float32 rounding and sums run in float32, in one order: a row's result does not depend
        on the other rows, nor on the number of threads. ``x`` is not quantized.

        Args:
            x: ``[..., in_features]`` of the weight's dtype, at any strides, on the CPU; may have no rows.
            bias: ``[out_features]`` of the weight's dtype.
            activation: applied to the sum.

        Returns:
            ``[..., out_features]``, contiguous.

        Raises:
            TensorArgumentError: ``x`` has another width, dtype or device than the weight.
        """
        out_features, in_features = self.shape
        if x.shape[-1] != in_features or x.dtype is not self.dtype or x.device != self.device:
            raise input_error(x, self.shape, self.dtype)
        # The long way costs a microsecond more, and a decoding step takes it once per layer.
        rows = x if x.is_contiguous() else rows_contiguous(x.reshape(-1, in_features))
        bias = None if bias is None else bias.contiguous()
        out = x.new_empty((*x.shape[:-1], out_features))
        _C.int8_linear(
            rows.data_ptr(),
            DTYPE_NAMES[self.dtype],
            rows.numel() // in_features,
            in_features if rows is x else rows.stride(0),
            self._panels.data_ptr(),
            self._scales.data_ptr(),
            in_features,
            out_features,
            0 if bias is None else bias.data_ptr(),
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return activate(out, activation)


def can_quantize(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :class:`Int8Weight` takes weights of this dtype and device."""
    return device.type == "cpu" and dtype in _DTYPES


def _to_panels(values: Tensor) -> Tensor:
    """``[panels, in_features, 32]``: what multiplies one input lies together; the last panel is filled with zeros."""
    width = _C.INT8_PANEL_WIDTH
    out_features, in_features = values.shape
    padded = F.pad(values, (0, 0, 0, -out_features % width))
    return padded.view(-1, width, in_features).transpose(1, 2).contiguous()


def _from_panels(panels: Tensor, out_features: int) -> Tensor:
    return panels.transpose(1, 2).reshape(-1, panels.shape[1])[:out_features].contiguous()
