"""The Triton kernel that adds up what parts of the keys gave."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ruprompt_fast.kernels.attention import LEAST, LOG2_E

# Parts that are read at a time.
MOST_PARTS = 16
WARPS = 4


@triton.jit(do_not_specialize=["parts"])
def merge_kernel(partials_ptr, lse_ptr, out_ptr, parts, DIM: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    head = tl.program_id(0).to(tl.int64)
    heads = tl.num_programs(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    maximum = tl.full((PARTS,), LEAST, tl.float32)
    total = tl.zeros((PARTS,), tl.float32)
    weighted = tl.zeros((PARTS, BLOCK), tl.float32)
    for start in range(0, parts, PARTS):
        part = start + tl.arange(0, PARTS)
        place = part * heads + head
        lse = tl.load(lse_ptr + place, mask=part < parts, other=float("-inf"))
        # A part that has seen nothing has written nothing either.
        partial = tl.load(
            partials_ptr + place[:, None] * DIM + columns[None, :],
            mask=(lse > float("-inf"))[:, None] & (columns < DIM)[None, :],
            other=0.0,
        )
        higher = tl.maximum(maximum, lse)
        shrink = tl.exp2((maximum - higher) * LOG2_E)
        weights = tl.exp2((lse - higher) * LOG2_E)
        total = total * shrink + weights
        weighted = weighted * shrink[:, None] + weights[:, None] * partial
        maximum = higher
    shrink = tl.exp2((maximum - tl.max(maximum, axis=0)) * LOG2_E)
    # A row of padding has no parts that have seen anything.
    all_weights = tl.maximum(tl.sum(total * shrink, axis=0), 1e-30)
    result = tl.sum(weighted * shrink[:, None], axis=0) / all_weights
    tl.store(out_ptr + head * DIM + columns, result.to(out_ptr.dtype.element_ty), mask=columns < DIM)


def launch_merge(partials: torch.Tensor, lse: torch.Tensor, out: torch.Tensor) -> None:
    """``out`` ``[rows, heads, dim]``: the parts' results, float32 ``[parts, rows, heads, dim]``, weighted by exp(lse).

    ``lse`` is float32 ``[parts, rows, heads]``. A part whose ``lse`` is minus infinity is not read; where all are,
    ``out`` is zero. All three are contiguous.
    """
    parts, rows, heads, dim = partials.shape
    if rows * heads == 0:
        return
    merge_kernel[(rows * heads,)](
        partials,
        lse,
        out,
        parts,
        DIM=dim,
        BLOCK=triton.next_power_of_2(dim),
        PARTS=min(triton.next_power_of_2(parts), MOST_PARTS),
        num_warps=WARPS,
    )
