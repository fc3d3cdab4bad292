"""Triton kernel of norms, with or without a residual that is added first: a program for each row."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

MOST_COLUMNS = 16384
"""A row is held in registers: 32 values for each of 512 threads."""

_MOST_WARPS = 16


@triton.jit
def add_norm_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    sum_ptr,
    out_ptr,
    width,
    x_stride,
    residual_stride,
    eps,
    KIND: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        x += tl.load(residual_ptr + row * residual_stride + column, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(DTYPE)
        tl.store(sum_ptr + row * width + column, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if KIND == "layer_norm":
        x = tl.where(inside, x - tl.sum(x) / width, 0.0)
    x *= tl.rsqrt(tl.sum(x * x) / width + eps)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0)
    if KIND == "rms_norm":
        result = x.to(DTYPE).to(tl.float32) * weight.to(tl.float32)
    elif KIND == "rms_norm_plus_one":
        result = x * (1.0 + weight.to(tl.float32))
    else:
        result = x * weight.to(tl.float32)
        if HAS_BIAS:
            result += tl.load(bias_ptr + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + column, result.to(DTYPE), mask=inside)


def block_and_warps(width: int, element_size: int) -> tuple[int, int]:
    """Columns of a program and its warps: one 128-bit load for each thread, more in rows wider than 16 warps."""
    block = triton.next_power_of_2(width)
    return block, min(max(block * element_size // (32 * 16), 1), _MOST_WARPS)


def launch_add_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    kind: str,
    total: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """``total = x + residual`` if there is a residual, and ``out`` its norm, or that of ``x``.

    All of one dtype; x, residual: ``[rows, width]`` with contiguous rows; weight, bias: ``[width]``, contiguous; total,
    out: ``[rows, width]``, contiguous; width at most ``MOST_COLUMNS``.
    """
    rows, width = out.shape
    block, warps = block_and_warps(width, out.element_size())
    # Pointers of what there is not are not read.
    arguments: tuple[Any, ...] = (
        x,
        x if residual is None else residual,
        weight,
        weight if bias is None else bias,
        out if total is None else total,
        out,
        width,
        x.stride(0),
        0 if residual is None else residual.stride(0),
        eps,
    )
    constants = {"KIND": kind, "HAS_RESIDUAL": residual is not None, "HAS_BIAS": bias is not None, "BLOCK": block}
    add_norm_kernel[(rows,)](*arguments, **constants, num_warps=warps)
