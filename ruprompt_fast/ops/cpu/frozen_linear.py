"""Linear layers of frozen weights multiplied by oneDNN, forwards and backwards, from the weight as it lies."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ruprompt_fast.ops.cpu.packed_linear import can_pack, multiply_plain


def takes_frozen_linear(x: Tensor, weight: Tensor) -> bool:
    """Whether :func:`frozen_linear_cpu` computes with these, here and now."""
    return x.dtype is torch.float32 and weight.dtype is torch.float32 and can_pack(x.dtype, x.device)


def frozen_linear_cpu(x: Tensor, weight: Tensor, bias: Tensor | None, transposed: bool) -> Tensor:
    """:func:`ruprompt_fast.ops.frozen_linear` of checked arguments, in float32."""
    out: Tensor = _FrozenLinear.apply(x, weight, bias, transposed)  # type: ignore[no-untyped-call]
    return out


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
