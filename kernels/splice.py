"""Triton kernels of the splice: the row lookup in two tables, and its gradient for the prompt table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# One program copies up to this many bytes of a row: 128 threads with one 128-bit load each, or 256 threads with two.
_SMALL_BLOCK_BYTES = 2048
_LARGE_BLOCK_BYTES = 8192
# At 128 columns the assembler spills for sm_70.
GRAD_BLOCK = {"POSITIONS": 8, "COLUMNS": 256}
GRAD_WARPS = 4


@triton.jit(do_not_specialize=["token_limit", "prompt_rows", "first_prompt_id"])
def splice_kernel(
    ids_ptr,
    token_ptr,
    prompt_ptr,
    out_ptr,
    error_ptr,
    width,
    token_stride,
    prompt_stride,
    token_limit,
    prompt_rows,
    first_prompt_id,
    BLOCK: tl.constexpr,
):
    position = tl.program_id(0).to(tl.int64)
    block = tl.program_id(1)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    id_ = tl.load(ids_ptr + position).to(tl.int64)
    row = id_ - first_prompt_id
    is_token = (id_ >= 0) & (id_ < token_limit)
    is_prompt = (row >= 0) & (row < prompt_rows)
    valid = is_token | is_prompt
    # One load from a chosen address: two masked loads would double the instructions and the registers.
    source = tl.where(is_prompt, prompt_ptr + row * prompt_stride, token_ptr + id_ * token_stride)
    # An id in neither table must read nothing; Triton 3.7's interpreter cannot run "inside & valid".
    readable = tl.where(valid, width, 0)
    value = tl.load(source + columns, mask=columns < readable, other=float("nan"))
    tl.store(out_ptr + position * width + columns, value, mask=columns < width)
    if (not valid) & (block == 0):
        # Only the program that swaps the mark in first describes its id, so the slots never mix two ids.
        if tl.atomic_cas(error_ptr, tl.full((), 0, tl.int64), tl.full((), 1, tl.int64)) == 0:
            tl.store(error_ptr + 1, id_)
            tl.store(error_ptr + 2, position)
            tl.store(error_ptr + 3, tl.full((), 0, tl.int64) + token_limit)
            tl.store(error_ptr + 4, tl.full((), 0, tl.int64) + first_prompt_id)
            tl.store(error_ptr + 5, tl.full((), 0, tl.int64) + prompt_rows)


@triton.jit
def splice_prompt_grad_kernel(
    order_ptr,
    starts_ptr,
    grad_ptr,
    out_ptr,
    width,
    grad_stride,
    ACCUMULATOR: tl.constexpr,
    POSITIONS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    inside = columns < width
    start = tl.load(starts_ptr + row)
    end = tl.load(starts_ptr + row + 1)
    total = tl.zeros((POSITIONS, COLUMNS), ACCUMULATOR)
    for first in range(start, end, POSITIONS):
        places = first + tl.arange(0, POSITIONS)
        present = places < end
        positions = tl.load(order_ptr + places, mask=present, other=0)
        grad = tl.load(
            grad_ptr + positions[:, None] * grad_stride + columns[None, :],
            mask=present[:, None] & inside[None, :],
            other=0.0,
        )
        total += grad.to(ACCUMULATOR)
    # The reduction tree has one shape, so equal inputs give equal bits.
    result = tl.sum(total, axis=0).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + row * width + columns, result, mask=inside)


def splice_block(row_bytes: int, element_size: int) -> tuple[int, int]:
    """Elements per program and warps, for rows of ``row_bytes``."""
    if row_bytes <= _SMALL_BLOCK_BYTES:
        return max(triton.next_power_of_2(row_bytes) // element_size, 1), 4 if row_bytes > 512 else 1
    block_bytes = min(triton.next_power_of_2(row_bytes), _LARGE_BLOCK_BYTES)
    return block_bytes // element_size, 8 if block_bytes == _LARGE_BLOCK_BYTES else 4


def launch_splice(
    ids: torch.Tensor,
    tokens: torch.Tensor,
    prompts: torch.Tensor,
    first_prompt_id: int,
    errors: torch.Tensor,
    out: torch.Tensor,
) -> None:
    """Fills ``out`` ``[ids.numel(), width]``; rows of ids in neither table are NaN and described in ``errors``.

    ``ids`` and both tables are contiguous; ``errors`` is int64 ``[6]``: a mark, the id, its position, and its limits
    (end of the token ids, first prompt id, number of virtual tokens).
    """
    width = tokens.shape[1]
    if out.numel() == 0:
        return
    block, warps = splice_block(width * tokens.element_size(), tokens.element_size())
    splice_kernel[(ids.numel(), triton.cdiv(width, block))](
        ids,
        tokens,
        prompts,
        out,
        errors,
        width,
        tokens.stride(0),
        prompts.stride(0),
        max(0, min(first_prompt_id, tokens.shape[0])),
        prompts.shape[0],
        first_prompt_id,
        BLOCK=block,
        num_warps=warps,
    )


def launch_prompt_grad(order: torch.Tensor, starts: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """``out[r] = sum(grad[order[starts[r]:starts[r + 1]]])``, summed in float32, or in float64 for float64.

    order: int64 ``[positions]``; starts: int64 ``[rows + 1]``; grad: ``[positions, width]`` with contiguous rows.
    """
    rows, width = out.shape
    if out.numel() == 0:
        return
    splice_prompt_grad_kernel[(rows, triton.cdiv(width, GRAD_BLOCK["COLUMNS"]))](
        order,
        starts,
        grad,
        out,
        width,
        grad.stride(0),
        ACCUMULATOR=tl.float64 if grad.dtype == torch.float64 else tl.float32,
        num_warps=GRAD_WARPS,
        **GRAD_BLOCK,
    )
