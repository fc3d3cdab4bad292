"""Frozen weights prepacked for oneDNN, in the blocked layout that it multiplies from.

``F.linear`` brings the weight into that layout, or works around not having it, at every call; at 8 rows of a 768-wide
model that costs more than the multiplication.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.activation import Activation

# None in a torch that was built without oneDNN.
_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
_REORDER: Any = getattr(torch.ops.mkldnn, "_reorder_linear_weight", None)
# oneDNN's name of what follows the matrix, and of the formula.
_POST_OPS: dict[Activation | None, tuple[str, str]] = {
    None: ("none", ""),
    "gelu_tanh": ("gelu", "tanh"),
    "gelu": ("gelu", "none"),
    "relu": ("relu", ""),
    "silu": ("swish", ""),
}
_DTYPES = (torch.float32, torch.bfloat16)
# Rows of the input that oneDNN chooses the layout for: those of a decoding step.
_EXPECTED_ROWS = 8


class PackedWeight:
    """A weight in oneDNN's layout; the plain tensor that it is made from is not kept.

    Args:
        weight: ``[out_features, in_features]``, neither of them zero, at any strides, float32 or bfloat16, on the CPU.

    Raises:
        TensorArgumentError: a weight other than that, or a dtype that oneDNN does not have on this processor.
    """

    def __init__(self, weight: Tensor) -> None:
        if weight.ndim != 2 or weight.numel() == 0 or not can_pack(weight.dtype, weight.device):
            raise TensorArgumentError(
                "the weight to pack must be [out_features, in_features], float32 or bfloat16 (where the processor has "
                f"it), on the CPU and not empty; found {weight.dtype} {list(weight.shape)} on {weight.device}"
            )
        self.shape, self.dtype, self.device = weight.shape, weight.dtype, weight.device
        self._packed: Tensor = _REORDER(weight.detach().contiguous(), _EXPECTED_ROWS)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory that the weight takes, without the padding of its blocks."""
        return self.shape.numel() * self.dtype.itemsize

    def dense(self) -> Tensor:
        """The weight as it was given, bit for bit, ``[out_features, in_features]``, in new memory."""
        return self._packed.to_dense()

    def linear(self, x: Tensor, bias: Tensor | None = None, activation: Activation | None = None) -> Tensor:
        """``activation(x @ weight.T + bias)`` in one operation; no gradients.

        The activation is applied to the sum before it is rounded to the dtype.

        Args:
            x: ``[..., in_features]`` of the weight's dtype, at any strides, on the CPU; may have no rows.
            bias: ``[out_features]`` of the weight's dtype.
            activation: applied to the sum.

        Returns:
            ``[..., out_features]``, contiguous.

        Raises:
            TensorArgumentError: ``x`` has another width or dtype than the weight.
        """
        if x.shape[-1] != self.shape[1] or x.dtype is not self.dtype:
            raise input_error(x, self.shape, self.dtype)
        kind, formula = _POST_OPS[activation]
        return cast(Tensor, _LINEAR(x, self._packed, bias, kind, [], formula))

    def __reduce__(self) -> tuple[type[PackedWeight], tuple[Tensor]]:
        # The layout belongs to this processor and cannot be copied: copies and pickles go through the plain weight.
        return PackedWeight, (self.dense(),)


def multiply_plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` by oneDNN, from a weight that is not packed; for what :func:`can_pack` accepts.

    Args:
        x: ``[..., in_features]``.
        weight: ``[out_features, in_features]`` at any strides; oneDNN brings it into its layout at every call.
        bias: ``[out_features]``.
    """
    return cast(Tensor, _LINEAR(x, weight, bias, "none", [], ""))


def input_error(x: Tensor, shape: torch.Size, dtype: torch.dtype) -> TensorArgumentError:
    """The error for an input that a weight of this shape and dtype does not take."""
    return TensorArgumentError(f"the input must be [..., {shape[1]}] of {dtype}; found {list(x.shape)} of {x.dtype}")


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether :class:`PackedWeight` takes weights of this dtype and device, here and now."""
    return device.type == "cpu" and _onednn_takes(dtype)


@lru_cache
def _onednn_takes(dtype: torch.dtype) -> bool:
    if dtype not in _DTYPES or _LINEAR is None or _REORDER is None:
        return False
    try:
        one = torch.ones(1, 1, dtype=dtype)
        _LINEAR(one, _REORDER(one, _EXPECTED_ROWS), None, "none", [], "")
    except RuntimeError:  # how oneDNN says that the processor lacks the instructions
        return False
    return True
