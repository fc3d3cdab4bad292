"""Triton kernels of the splice: the row lookup in two tables, and its gradient for the prompt table."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# What a program of the lookup moves: 128 threads with two 128-bit loads each, both before the first store. 16 programs
# are on a multiprocessor at once, with 64 KB on their way; bandwidth times latency is 7 KB for each of a V100's and
# 18 KB for each of an H100's, so neither wants another size. At four loads the assembler spills for sm_70.
TILE_BYTES, TILE_WARPS = 4096, 4
_BLOCK_BYTES = (4096, 2048, 1024, 512)
# Threads of a block that may lie beyond the end of the row.
_MOST_IDLE = 1 / 8

# The gradient waits for two loads, of a segment's bounds and of its positions, before it reads a row. Long segments
# have 8 KB of rows on their way in a step of the loop, short ones 4 KB of one row. 600 programs, for 100 rows of 1536,
# then have twice an H100's bandwidth times latency on their way.
GRAD_LONG = {"POSITIONS": 16, "COLUMNS": 256}
GRAD_SHORT = {"POSITIONS": 1, "COLUMNS": 2048}
GRAD_WARPS = 4
# Positions for each row of the prompt table, from which on segments are taken to be long. Some positions are tokens.
_LONG_SEGMENT = 32


@triton.jit(do_not_specialize=["num_ids", "token_limit", "prompt_rows", "first_prompt_id"])
def splice_kernel(
    ids_ptr,
    token_ptr,
    prompt_ptr,
    out_ptr,
    error_ptr,
    num_ids,
    width,
    token_stride,
    prompt_stride,
    token_limit,
    prompt_rows,
    first_prompt_id,
    ALIGNMENT: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    # The blocks of a row are neighbours, so that its memory is read in one piece.
    blocks = tl.cdiv(width, BLOCK)
    block = tl.program_id(0) % blocks
    # From a program's first id on, 32 bits reach; 64 in each thread would spill.
    first = (tl.program_id(0) // blocks).to(tl.int64) * ROWS
    place = tl.arange(0, ROWS)
    columns = block * BLOCK + tl.arange(0, BLOCK)
    present = place < tl.minimum(num_ids - first, ROWS).to(tl.int32)
    id_ = tl.load(ids_ptr + first + place, mask=present, other=0).to(tl.int64)
    row = id_ - first_prompt_id
    is_token = (id_ >= 0) & (id_ < token_limit)
    is_prompt = (row >= 0) & (row < prompt_rows)
    is_bad = present & (is_token == is_prompt)  # an id is never in both
    # One load from a chosen address: two masked loads would double the instructions and the registers. That addresses
    # and widths are multiples of 16 bytes, Triton 3.8 forgets where one is chosen.
    source = tl.where(is_prompt, prompt_ptr + row * prompt_stride, token_ptr + id_ * token_stride)
    source = tl.multiple_of(source, ALIGNMENT)
    # An id in neither table must read nothing; Triton 3.7's interpreter cannot run "inside & valid".
    readable = width * (present & (is_bad == 0)).to(tl.int32)
    value = tl.load(source[:, None] + columns[None, :], mask=columns[None, :] < readable[:, None], other=float("nan"))
    out_ptr += first * width
    tl.store(
        out_ptr + place[:, None] * width + columns[None, :],
        value,
        mask=columns[None, :] < (width * present.to(tl.int32))[:, None],
    )
    if block == 0:
        bad_place = tl.min(tl.where(is_bad, place, ROWS))
        if bad_place < ROWS:
            # Only the program that swaps the mark in first describes its id, so the slots never mix two ids. It swaps
            # the mark's lower half: Triton 3.4 cannot compile a swap of 64 bits.
            mark_ptr = error_ptr.to(tl.pointer_type(tl.int32))
            if tl.atomic_cas(mark_ptr, tl.full((), 0, tl.int32), tl.full((), 1, tl.int32)) == 0:
                tl.store(error_ptr + 1, tl.load(ids_ptr + first + bad_place).to(tl.int64))
                tl.store(error_ptr + 2, first + bad_place)
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


def splice_tile(width: int, element_size: int) -> dict[str, int]:
    """Rows of a program and the elements that it takes of each: the longest piece with few idle threads."""
    row_bytes = width * element_size
    whole = max(triton.next_power_of_2(row_bytes), element_size)
    pieces = [piece for piece in _BLOCK_BYTES if piece <= whole]
    block = next((piece for piece in pieces if -row_bytes % piece <= _MOST_IDLE * row_bytes), min(whole, 1024))
    return {"ROWS": TILE_BYTES // max(block, 64), "BLOCK": block // element_size}


def grad_tile(num_ids: int, prompt_rows: int) -> dict[str, int]:
    """Positions and columns of a step of the gradient's loop."""
    return GRAD_LONG if num_ids >= _LONG_SEGMENT * prompt_rows else GRAD_SHORT


def _alignment(*tables: torch.Tensor) -> int:
    """Bytes that every row's address is a multiple of: 16, or those of an element."""
    addresses = [address for table in tables for address in (table.data_ptr(), table.stride(0) * table.element_size())]
    return tables[0].element_size() if any(address % 16 for address in addresses) else 16


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
    tile = splice_tile(width, tokens.element_size())
    splice_kernel[(triton.cdiv(ids.numel(), tile["ROWS"]) * triton.cdiv(width, tile["BLOCK"]),)](
        ids,
        tokens,
        prompts,
        out,
        errors,
        ids.numel(),
        width,
        tokens.stride(0),
        prompts.stride(0),
        max(0, min(first_prompt_id, tokens.shape[0])),
        prompts.shape[0],
        first_prompt_id,
        ALIGNMENT=_alignment(tokens, prompts),
        num_warps=TILE_WARPS,
        **tile,
    )


def launch_prompt_grad(order: torch.Tensor, starts: torch.Tensor, grad: torch.Tensor, out: torch.Tensor) -> None:
    """``out[r] = sum(grad[order[starts[r]:starts[r + 1]]])``, summed in float32, or in float64 for float64.

    order: int64 ``[positions]``; starts: int64 ``[rows + 1]``; grad: ``[positions, width]`` with contiguous rows.
    """
    rows, width = out.shape
    if out.numel() == 0:
        return
    tile = grad_tile(len(order), rows)
    splice_prompt_grad_kernel[(rows, triton.cdiv(width, tile["COLUMNS"]))](
        order,
        starts,
        grad,
        out,
        width,
        grad.stride(0),
        ACCUMULATOR=tl.float64 if grad.dtype == torch.float64 else tl.float32,
        num_warps=GRAD_WARPS,
        **tile,
    )
