"""Triton kernel of decoding after a shared prefix: the queries of all its rows walk over it together, in parts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ruprompt_fast.kernels.attention import LOG2_E, Tile, attend, block_of, group_of_block


# As in prefill, what differs between batches must not make Triton compile again.
@triton.jit(
    do_not_specialize=[
        "tables_ptr",
        "lens_ptr",
        "starts_ptr",
        "prefix_lens_ptr",
        "window",
        "groups",
        "num_rows",
        "table_stride",
    ]
)
def prefix_decode_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    tables_ptr,
    lens_ptr,
    starts_ptr,
    prefix_lens_ptr,
    out_ptr,
    lse_ptr,
    scaling,
    softcap,
    window,
    groups,
    num_rows,
    kv_heads,
    group,
    row_stride,
    head_stride,
    table_stride,
    SPLIT: tl.constexpr,
    HEADS: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    DOT: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
):
    QUERIES: tl.constexpr = ROWS // HEADS
    block = tl.program_id(0)
    head_blocks = tl.cdiv(group, HEADS)
    kv_head = tl.program_id(1) // head_blocks
    part = tl.program_id(2)
    sharing = group_of_block(starts_ptr, groups, block, QUERIES)
    start = tl.load(starts_ptr + sharing)
    # Rows after the last group share nothing.
    stop = tl.load(starts_ptr + sharing + 1, mask=sharing < groups, other=num_rows)
    first_row = start + (block - start // QUERIES - sharing) * QUERIES
    if first_row < stop:
        lane = tl.arange(0, ROWS)
        in_group = tl.program_id(1) % head_blocks * HEADS + lane % HEADS
        rows = first_row + lane // HEADS
        present = (lane < QUERIES * HEADS) & (rows < stop) & (in_group < group)
        heads = kv_head * group + in_group
        prefix = tl.load(prefix_lens_ptr + start, mask=sharing < groups, other=0)
        # Parts lie one after another, [parts, rows, heads, dim]. From a tile's first row on, 32 bits reach, and 64 in
        # each thread would spill.
        first_place = (part.to(tl.int64) * num_rows + first_row) * kv_heads * group
        out_ptr += first_place * VALUE_DIM
        lse_ptr += first_place
        if part * SPLIT < prefix:
            context = tl.load(lens_ptr + rows, mask=present, other=0)
            sees_from = tl.maximum(context - window, 0) if WINDOW else tl.zeros_like(context)
            begin = part * SPLIT
            end = tl.minimum(begin + SPLIT, prefix)
            if WINDOW:
                begin = tl.maximum(begin, tl.min(tl.where(present, sees_from, prefix)))
            columns = tl.arange(0, BLOCK_D)
            query = tl.load(
                query_ptr + (rows.to(tl.int64) * row_stride + heads * head_stride)[:, None] + columns[None, :],
                mask=present[:, None] & (columns < HEAD_DIM)[None, :],
                other=0.0,
            )
            weighted, maximum, total = attend(
                query,
                sees_from,
                tl.minimum(context, end),
                key_ptr,
                value_ptr,
                tables_ptr + start.to(tl.int64) * table_stride,
                kv_head,
                kv_heads,
                begin,
                end,
                scaling,
                softcap,
                SOFTCAP,
                DOT,
                PAGE,
                HEAD_DIM,
                VALUE_DIM,
                BLOCK_D,
                BLOCK_V,
                ROWS,
                KEYS,
            )
            has_seen = total > 0
            total = tl.where(has_seen, total, 1.0)
            lse = tl.where(has_seen, (maximum + tl.log2(total)) / LOG2_E, float("-inf"))
            columns = tl.arange(0, BLOCK_V)
            places = lane // HEADS * kv_heads * group + heads
            tl.store(
                out_ptr + places[:, None] * VALUE_DIM + columns[None, :],
                weighted / total[:, None],
                mask=present[:, None] & (columns < VALUE_DIM)[None, :],
            )
            tl.store(lse_ptr + places, lse, mask=present)
        else:
            places = lane // HEADS * kv_heads * group + heads
            tl.store(lse_ptr + places, tl.full((ROWS,), float("-inf"), tl.float32), mask=present)


def launch_prefix_decode(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    group_starts: torch.Tensor,
    prefix_lens: torch.Tensor,
    partials: torch.Tensor,
    lse: torch.Tensor,
    *,
    split: int,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    tile: Tile,
) -> None:
    """Attention of every row over each part of its prefix, ``split`` tokens long; the others are the operator's.

    ``partials`` is float32 ``[parts, rows, heads, value_dim]`` and ``lse`` ``[parts, rows, heads]`` has the logarithms
    of the sums of weights: minus infinity where a part has seen nothing, whose ``partials`` then mean nothing.
    """
    num_rows, heads, head_dim = query.shape
    if num_rows == 0:
        return
    _, kv_heads, page_size, value_dim = value_pages.shape
    group, groups = heads // kv_heads, group_starts.shape[0] - 1
    heads_of_tile = min(group, tile.rows)
    blocks = num_rows // (tile.rows // heads_of_tile) + groups + 1
    prefix_decode_kernel[(blocks, kv_heads * triton.cdiv(group, heads_of_tile), partials.shape[0])](
        query,
        key_pages,
        value_pages,
        block_tables,
        context_lens,
        group_starts,
        prefix_lens,
        partials,
        lse,
        # Scores in units of log 2: the kernel raises two to them.
        scaling * LOG2_E.value,
        (softcap or 0.0) * LOG2_E.value,
        min(sliding_window or 0, 2**31 - 1),
        groups,
        num_rows,
        kv_heads,
        group,
        query.stride(0),
        query.stride(1),
        block_tables.stride(0),
        SPLIT=split,
        HEADS=heads_of_tile,
        WINDOW=sliding_window is not None,
        SOFTCAP=softcap is not None,
        DOT=tile.dot,
        PAGE=page_size,
        HEAD_DIM=head_dim,
        VALUE_DIM=value_dim,
        BLOCK_D=block_of(head_dim),
        BLOCK_V=block_of(value_dim),
        ROWS=tile.rows,
        KEYS=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
