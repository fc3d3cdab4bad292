"""Triton kernel that makes a step's ids and positions from what was staged."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

BLOCK = 256


@triton.jit(do_not_specialize=["count"])
def step_ids_kernel(ids_ptr, positions_ptr, carried_ptr, out_ids_ptr, out_positions_ptr, count, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    id_ = tl.load(ids_ptr + place, mask=inside, other=0)
    is_carried = inside & (id_ < 0)
    carried = tl.load(carried_ptr + (-1 - id_), mask=is_carried, other=0)
    tl.store(out_ids_ptr + place, tl.where(is_carried, carried, id_).to(tl.int64), mask=inside)
    position = tl.load(positions_ptr + place, mask=inside, other=0)
    tl.store(out_positions_ptr + place, position.to(tl.int64), mask=inside)


def launch_step_ids(
    ids: torch.Tensor,
    positions: torch.Tensor,
    carried: torch.Tensor,
    out_ids: torch.Tensor,
    out_positions: torch.Tensor,
) -> None:
    """All contiguous and one-dimensional; the first three int32, the last two int64 and as long as the first."""
    count = ids.numel()
    if count == 0:
        return
    step_ids_kernel[(triton.cdiv(count, BLOCK),)](
        ids, positions, carried, out_ids, out_positions, count, BLOCK=BLOCK, num_warps=4
    )
