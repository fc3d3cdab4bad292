"""Triton kernels of linear layers from int8 weights: few rows, a tile of rows on tensor cores, and the plain weight.

The weight is ``[out_features, in_features]`` at a row stride that is divisible by 16, so that a thread takes 16 of its
values in one 128-bit load.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

# By the rows of a program: how many inputs one step of its loop takes of a channel. Every thread has a sum for each of
# its 16 or 32 inputs, of every row, so there is no reduction in the loop, and more would not fit its registers.
ROWS_BLOCKS = {1: 1024, 2: 1024, 4: 512}
# A warp for each channel: with 1024 inputs that is 4 KB in flight for each program, and 1536 channels are 384 programs.
ROWS_CHANNELS = 4
ROWS_WARPS = 4

# By the rows of a tile: inputs of a step, and how many steps are loaded ahead. Shared memory is at most 48 KB.
TILE_STEPS = {16: (128, 4), 32: (128, 3), 64: (128, 2)}
TILE_WARPS = 4
# A layer with fewer channels than this gets narrow programs, or most multiprocessors would have none.
_MANY_CHANNELS = 4096

# 16 values for each thread.
PLAIN_BLOCK, PLAIN_WARPS = 2048, 4


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "gelu_tanh":
        # x / 2 * (1 + tanh(z)) = x * sigmoid(2 * z), without what cancels in 1 + tanh(z).
        x = x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "gelu":
        x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "silu":
        x = x * tl.sigmoid(x)
    elif ACTIVATION == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    return x


@triton.jit
def finished(
    total, scale, bias_ptr, channel, inside, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, DTYPE: tl.constexpr
):
    total = total * scale
    if HAS_BIAS:
        total += tl.load(bias_ptr + channel, mask=inside, other=0.0).to(tl.float32)
    # The activation is of the rounded sum, as it is of a linear layer's output.
    return activated(total.to(DTYPE).to(tl.float32), ACTIVATION).to(DTYPE)


@triton.jit(do_not_specialize=["num_rows"])
def int8_rows_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    in_features,
    out_features,
    x_stride,
    values_stride,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # Programs of the same channels are neighbours: what one reads of the weight, the others find in the cache.
    first_row = tl.program_id(0) * ROWS
    channel = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < out_features
    last_row = num_rows - 1
    # Inputs are addressed in the weight's shape, so that both are loaded in one layout and nothing is exchanged.
    x_rows = x_ptr + tl.zeros((CHANNELS, 1), tl.int64)
    x0 = x_rows + first_row.to(tl.int64) * x_stride
    x1 = x_rows + tl.minimum(first_row + 1, last_row).to(tl.int64) * x_stride
    x2 = x_rows + tl.minimum(first_row + 2, last_row).to(tl.int64) * x_stride
    x3 = x_rows + tl.minimum(first_row + 3, last_row).to(tl.int64) * x_stride
    total0 = tl.zeros((CHANNELS, BLOCK), tl.float32)
    total1, total2, total3 = total0, total0, total0
    for start in range(0, in_features, BLOCK):
        column = (start + tl.arange(0, BLOCK))[None, :]
        present = column < in_features
        values = tl.load(
            values_ptr + channel[:, None].to(tl.int64) * values_stride + column, mask=inside[:, None] & present, other=0
        ).to(tl.float32)
        total0 += values * tl.load(x0 + column, mask=present, other=0.0).to(tl.float32)
        if ROWS > 1:
            total1 += values * tl.load(x1 + column, mask=present, other=0.0).to(tl.float32)
        if ROWS > 2:
            total2 += values * tl.load(x2 + column, mask=present, other=0.0).to(tl.float32)
            total3 += values * tl.load(x3 + column, mask=present, other=0.0).to(tl.float32)
    scale = tl.load(scales_ptr + channel, mask=inside, other=0.0)
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    out = out_ptr + first_row.to(tl.int64) * out_features + channel
    result = finished(tl.sum(total0, 1), scale, bias_ptr, channel, inside, HAS_BIAS, ACTIVATION, DTYPE)
    tl.store(out, result, mask=inside)
    if ROWS > 1:
        result = finished(tl.sum(total1, 1), scale, bias_ptr, channel, inside, HAS_BIAS, ACTIVATION, DTYPE)
        tl.store(out + out_features, result, mask=inside & (first_row + 1 < num_rows))
    if ROWS > 2:
        result = finished(tl.sum(total2, 1), scale, bias_ptr, channel, inside, HAS_BIAS, ACTIVATION, DTYPE)
        tl.store(out + 2 * out_features, result, mask=inside & (first_row + 2 < num_rows))
        result = finished(tl.sum(total3, 1), scale, bias_ptr, channel, inside, HAS_BIAS, ACTIVATION, DTYPE)
        tl.store(out + 3 * out_features, result, mask=inside & (first_row + 3 < num_rows))


@triton.jit(do_not_specialize=["num_rows"])
def int8_tile_kernel(
    x_ptr,
    values_ptr,
    scales_ptr,
    bias_ptr,
    out_ptr,
    num_rows,
    in_features,
    out_features,
    x_stride,
    values_stride,
    HAS_BIAS: tl.constexpr,
    ACTIVATION: tl.constexpr,
    ROWS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.arange(0, ROWS)
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside = channel < out_features
    lane = tl.arange(0, BLOCK)
    x = x_ptr + row[:, None].to(tl.int64) * x_stride
    values = values_ptr + channel[:, None].to(tl.int64) * values_stride
    total = tl.zeros((ROWS, CHANNELS), tl.float32)
    for start in range(0, in_features, BLOCK):
        column = (start + lane)[None, :]
        present = column < in_features
        inputs = tl.load(x + column, mask=(row[:, None] < num_rows) & present, other=0.0)
        weight = tl.load(values + column, mask=inside[:, None] & present, other=0).to(inputs.dtype)
        total = tl.dot(inputs, tl.trans(weight), total)
    scale = tl.load(scales_ptr + channel, mask=inside, other=0.0)
    DTYPE: tl.constexpr = out_ptr.dtype.element_ty
    result = finished(total, scale[None, :], bias_ptr, channel[None, :], inside[None, :], HAS_BIAS, ACTIVATION, DTYPE)
    tl.store(
        out_ptr + row[:, None].to(tl.int64) * out_features + channel[None, :],
        result,
        mask=(row[:, None] < num_rows) & inside[None, :],
    )


@triton.jit
def int8_plain_kernel(values_ptr, scales_ptr, out_ptr, in_features, values_stride, BLOCK: tl.constexpr):
    channel = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    present = column < in_features
    values = tl.load(values_ptr + channel * values_stride + column, mask=present, other=0)
    scale = tl.load(scales_ptr + channel)
    tl.store(out_ptr + channel * in_features + column, (values * scale).to(out_ptr.dtype.element_ty), mask=present)


def tile_channels(out_features: int) -> int:
    """Channels of a program that computes a tile of rows."""
    return 32 if out_features >= _MANY_CHANNELS else 16


def launch_rows(
    x: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    out: torch.Tensor,
) -> None:
    """``out = activation(x @ (values * scales).T + bias)``, reading the weight once for every four rows of ``x``.

    x: ``[rows, in_features]`` with contiguous rows; values: int8 ``[out_features, >= in_features]``, row stride
    divisible by 16; scales: float32; out: ``[rows, out_features]``, contiguous.
    """
    rows = min(triton.next_power_of_2(len(x)), max(ROWS_BLOCKS))
    grid = (triton.cdiv(len(x), rows), triton.cdiv(out.shape[1], ROWS_CHANNELS))
    shape = {"ROWS": rows, "CHANNELS": ROWS_CHANNELS, "BLOCK": ROWS_BLOCKS[rows]}
    int8_rows_kernel[grid](*_arguments(x, values, scales, bias, activation, out), **shape, num_warps=ROWS_WARPS)


def launch_tile(
    x: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    out: torch.Tensor,
) -> None:
    """:func:`launch_rows` for up to 64 rows in float16 or bfloat16 on tensor cores, reading the weight once."""
    rows = max(triton.next_power_of_2(len(x)), min(TILE_STEPS))
    channels = tile_channels(out.shape[1])
    block, stages = TILE_STEPS[rows]
    int8_tile_kernel[(triton.cdiv(out.shape[1], channels),)](
        *_arguments(x, values, scales, bias, activation, out),
        ROWS=rows,
        CHANNELS=channels,
        BLOCK=block,
        num_warps=TILE_WARPS,
        num_stages=stages,
    )


def launch_plain(values: torch.Tensor, scales: torch.Tensor, out: torch.Tensor) -> None:
    """``out = values * scales`` by channel, in the dtype of ``out`` ``[channels, in_features]``, contiguous."""
    channels, in_features = out.shape
    int8_plain_kernel[(channels, triton.cdiv(in_features, PLAIN_BLOCK))](
        values, scales, out, in_features, values.stride(0), BLOCK=PLAIN_BLOCK, num_warps=PLAIN_WARPS
    )


def _arguments(
    x: torch.Tensor,
    values: torch.Tensor,
    scales: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str | None,
    out: torch.Tensor,
) -> tuple[Any, ...]:
    return (
        x,
        values,
        scales,
        scales if bias is None else bias,  # a pointer that is not read
        out,
        len(x),
        x.shape[1],
        out.shape[1],
        x.stride(0),
        values.stride(0),
        bias is not None,
        activation or "",
    )
