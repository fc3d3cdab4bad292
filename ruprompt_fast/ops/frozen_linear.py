"""A linear layer of a frozen weight that passes gradients on, multiplied by oneDNN on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.packed_linear import can_pack, multiply_plain


def frozen_linear_reference(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """:func:`frozen_linear` in plain PyTorch."""
    return F.linear(x, weight.t() if transposed else weight, bias)


def frozen_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, transposed: bool = False) -> Tensor:
    """A linear layer whose weights do not train.

    Semantics::

        out = x @ (weight if transposed else weight.T) + bias
        grad_x = grad_out @ (weight.T if transposed else weight)     # weight and bias get no gradient

    In float32 on a CPU both products are oneDNN's on the weight as it lies in memory: for 16 to 1,024 rows of a
    768-wide model 1.1 to 2.2 times as fast as ``F.linear``, which takes MKL's; no copy of a weight is kept. Elsewhere
    ``F.linear`` computes them.

    Args:
        x: [..., in_features].
        weight: [out_features, in_features], or [in_features, out_features] if ``transposed``.
        bias: [out_features].
        transposed: whether the weight lies as in transformers' ``Conv1D``.

    Returns:
        [..., out_features].

    Raises:
        TensorArgumentError: weight or bias wants a gradient.
    """
    check_frozen_weight(weight, bias)
    if x.dtype is not torch.float32 or weight.dtype is not torch.float32 or not can_pack(x.dtype, x.device):
        return frozen_linear_reference(x, weight, bias, transposed)
    out: Tensor = _FrozenLinear.apply(x, weight, bias, transposed)  # type: ignore[no-untyped-call]
    return out


def check_frozen_weight(weight: Tensor, bias: Tensor | None) -> None:
    """Refuse weights that would want a gradient here and not get one.

    Raises:
        TensorArgumentError: gradients are recorded, and one of them requires one.
    """
    if torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad)):
        raise TensorArgumentError(
            "a frozen layer's weight and bias must not require gradients; use F.linear for those that train."
        )


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.transposed = transposed
        return multiply_plain(x, weight.t() if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (weight,) = ctx.saved_tensors
        return multiply_plain(grads[0], weight if ctx.transposed else weight.t()), None, None, None
