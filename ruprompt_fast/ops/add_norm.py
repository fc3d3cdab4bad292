"""The norms of transformers' models, each in one kernel, with the residual before them if there is one."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import runs_kernels

NORM_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of norms."""

NormKind: TypeAlias = Literal["layer_norm", "rms_norm", "rms_norm_plus_one"]
"""The norms: with mean and bias; Llama's, which rounds to the dtype before the weight; Gemma's, times 1 + weight."""


def norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: NormKind) -> Tensor:
    """The norm over the last dimension.

    Semantics::

        h = x.float()
        layer_norm:         ((h - mean(h)) / sqrt(var(h) + eps) * weight + bias)       rounded to the dtype at the end
        rms_norm:           (h / sqrt(mean(h ** 2) + eps)).to(dtype) * weight
        rms_norm_plus_one:  (h / sqrt(mean(h ** 2) + eps) * (1 + weight.float()))      rounded to the dtype at the end

    Args:
        x: ``[..., width]``, float32, float16 or bfloat16, at any strides.
        weight: ``[width]`` of the same dtype and device.
        bias: likewise, for ``layer_norm`` only, or None.
        eps: what is added to the mean of squares.
        kind: which norm.

    Returns:
        Of the shape and dtype of ``x``, contiguous; no gradients.

    Raises:
        TensorArgumentError: a shape, dtype or device other than that, a bias of another kind of norm.
    """
    _check(x, weight, bias, kind)
    if not runs_kernels(x):
        return norm_reference(x, weight, bias, eps, kind)
    from ruprompt_fast.ops.cuda.add_norm import add_norm_cuda, fits

    return add_norm_cuda(x, None, weight, bias, eps, kind)[1] if fits(x) else norm_reference(x, weight, bias, eps, kind)


def norm_reference(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: NormKind) -> Tensor:
    """:func:`norm` in plain PyTorch."""
    if kind == "layer_norm":
        return F.layer_norm(x, weight.shape, weight, bias, eps)
    h = x.float()
    h = h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + eps)
    return (h * (1.0 + weight.float())).to(x.dtype) if kind == "rms_norm_plus_one" else weight * h.to(x.dtype)


def add_norm(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: NormKind
) -> tuple[Tensor, Tensor]:
    """A residual connection and the norm after it.

    Semantics::

        total = x + residual                                     rounded to the dtype
        return total, norm(total, weight, bias, eps, kind)

    Args:
        x: ``[..., width]``, float32, float16 or bfloat16, at any strides.
        residual: of the same shape, dtype and device.
        weight: as in :func:`norm`.
        bias: likewise.
        eps: likewise.
        kind: likewise.

    Returns:
        The sum and its norm, of the shape and dtype of ``x``, contiguous; no gradients.

    Raises:
        TensorArgumentError: a shape, dtype or device other than that.
    """
    _check(x, weight, bias, kind)
    if residual.shape != x.shape or residual.dtype is not x.dtype or residual.device != x.device:
        raise TensorArgumentError(
            f"the residual must be as x is, {list(x.shape)} of {x.dtype} on {x.device}; found {list(residual.shape)} "
            f"of {residual.dtype} on {residual.device}"
        )
    if not runs_kernels(x):
        return add_norm_reference(x, residual, weight, bias, eps, kind)
    from ruprompt_fast.ops.cuda.add_norm import add_norm_cuda, fits

    compute = add_norm_cuda if fits(x) else add_norm_reference
    return compute(x, residual, weight, bias, eps, kind)


def add_norm_reference(
    x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: NormKind
) -> tuple[Tensor, Tensor]:
    """:func:`add_norm` in plain PyTorch."""
    total = x + residual
    return total, norm_reference(total, weight, bias, eps, kind)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, kind: NormKind) -> None:
    if x.dtype not in NORM_DTYPES or x.ndim == 0 or x.shape[-1] == 0:
        raise TensorArgumentError(
            f"x must be [..., width] of float32, float16 or bfloat16, and not empty; found {list(x.shape)} of {x.dtype}"
        )
    if bias is not None and kind != "layer_norm":
        raise TensorArgumentError(f"only layer_norm has a bias; found one for {kind}")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is None:
            continue
        if tensor.shape != x.shape[-1:] or tensor.dtype is not x.dtype or tensor.device != x.device:
            raise TensorArgumentError(
                f"{name} must be [{x.shape[-1]}] of {x.dtype} on {x.device}; found {list(tensor.shape)} of "
                f"{tensor.dtype} on {tensor.device}"
            )
