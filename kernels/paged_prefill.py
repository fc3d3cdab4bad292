"""Triton kernels of prefill: attention of packed sequences over pages, and pages gathered into packed tokens."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ruprompt_fast.kernels.attention import LOG2_E, Tile, attend, block_of, group_of_block, page_tile


@triton.jit
def _rows_of_tile(lane, token, stop, group, HEADS: tl.constexpr, QUERIES: tl.constexpr):
    """How far after ``token`` each row's token is, its head within the group, and whether there is such a row."""
    distance = lane // HEADS
    head = tl.program_id(2) * HEADS + lane % HEADS
    return distance, head, (lane < QUERIES * HEADS) & (token + distance < stop) & (head < group)


# What changes between steps must not make Triton compile again: sizes, and where in a step's block of memory its
# numbers lie.
@triton.jit(
    do_not_specialize=["starts_ptr", "lens_ptr", "tables_ptr", "window", "sequences", "num_tokens", "table_stride"]
)
def paged_prefill_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    starts_ptr,
    lens_ptr,
    tables_ptr,
    out_ptr,
    scaling,
    softcap,
    window,
    sequences,
    num_tokens,
    kv_heads,
    group,
    token_stride,
    head_stride,
    table_stride,
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
    # The last tokens of a sequence see the most, so they begin first.
    block = tl.num_programs(0) - 1 - tl.program_id(0)
    kv_head = tl.program_id(1)
    sequence = group_of_block(starts_ptr, sequences, block, QUERIES)
    start = tl.load(starts_ptr + sequence)
    # What comes after the last sequence is padding, which is a sequence of its own that sees nothing.
    stop = tl.load(starts_ptr + sequence + 1, mask=sequence < sequences, other=num_tokens)
    token = start + (block - start // QUERIES - sequence) * QUERIES
    if token < stop:
        lane = tl.arange(0, ROWS)
        distance, head, present = _rows_of_tile(lane, token, stop, group, HEADS, QUERIES)
        columns = tl.arange(0, BLOCK_D)
        query_ptr += token.to(tl.int64) * token_stride + (kv_head * group).to(tl.int64) * head_stride
        query = tl.load(
            query_ptr + (distance * token_stride + head * head_stride)[:, None] + columns[None, :],
            mask=present[:, None] & (columns < HEAD_DIM)[None, :],
            other=0.0,
        )
        context = tl.load(lens_ptr + sequence, mask=sequence < sequences, other=0)
        behind = tl.where(sequence < sequences, context - stop, -num_tokens)
        sees_until = token + behind + 1 + distance
        end = tl.minimum(token + QUERIES, stop) + behind
        sees_from = tl.maximum(sees_until - window, 0) if WINDOW else tl.zeros_like(sees_until)
        begin = tl.maximum(token + behind + 1 - window, 0) // KEYS * KEYS if WINDOW else 0
        weighted, _, total = attend(
            query,
            sees_from,
            sees_until,
            key_ptr,
            value_ptr,
            tables_ptr + sequence.to(tl.int64) * table_stride,
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
        # Only padding has no weights.
        result = weighted / tl.where(total > 0, total, 1.0)[:, None]
        # Zero is added, which the compiler does not see: what it knows of the rows it computes again, where registers
        # kept over the walk would spill. For the same reason 32 bits count from the tile's first token on.
        lane += tl.minimum(block, 0)
        distance, head, present = _rows_of_tile(lane, token, stop, group, HEADS, QUERIES)
        places = (distance * kv_heads + kv_head) * group + head
        out_ptr += token.to(tl.int64) * kv_heads * group * VALUE_DIM
        columns = tl.arange(0, BLOCK_V)
        tl.store(
            out_ptr + places[:, None] * VALUE_DIM + columns[None, :],
            result.to(out_ptr.dtype.element_ty),
            mask=present[:, None] & (columns < VALUE_DIM)[None, :],
        )


@triton.jit(do_not_specialize=["tables_ptr", "starts_ptr", "table_stride"])
def gather_pages_kernel(
    pages_ptr,
    tables_ptr,
    starts_ptr,
    out_ptr,
    kv_heads,
    group,
    table_stride,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK: tl.constexpr,
):
    block = tl.program_id(0)
    sequence = tl.program_id(1).to(tl.int64)
    kv_head = tl.program_id(2)
    start = tl.load(starts_ptr + sequence) + block * PAGE
    stop = tl.load(starts_ptr + sequence + 1)
    if start < stop:
        page = tl.load(tables_ptr + sequence * table_stride + block)
        places = tl.arange(0, PAGE)
        inside = start + places < stop
        tile = page_tile(pages_ptr, page, places, kv_head, kv_heads, inside, PAGE, DIM, BLOCK)
        columns = tl.arange(0, BLOCK)
        mask = inside[:, None] & (columns < DIM)[None, :]
        rows = (start + places).to(tl.int64) * kv_heads * group + kv_head * group
        for head in range(group):
            tl.store(out_ptr + (rows + head)[:, None] * DIM + columns[None, :], tile, mask=mask)


def launch_paged_prefill(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    query_starts: torch.Tensor,
    context_lens: torch.Tensor,
    block_tables: torch.Tensor,
    out: torch.Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    tile: Tile,
) -> None:
    """Fills ``out`` ``[tokens, heads, value_dim]``, padding with zeros; the others are the operator's."""
    tokens, heads, head_dim = query.shape
    if tokens == 0:
        return
    kv_heads, page_size, value_dim = *value_pages.shape[1:3], value_pages.shape[3]
    sequences, group = context_lens.shape[0], heads // kv_heads
    heads_of_tile = min(group, tile.rows)
    blocks = tokens // (tile.rows // heads_of_tile) + sequences + 1
    paged_prefill_kernel[(blocks, kv_heads, triton.cdiv(group, heads_of_tile))](
        query,
        key_pages,
        value_pages,
        query_starts,
        context_lens,
        block_tables,
        out,
        scaling * LOG2_E.value,
        (softcap or 0.0) * LOG2_E.value,
        min(sliding_window or 0, 2**31 - 1),
        sequences,
        tokens,
        kv_heads,
        group,
        query.stride(0),
        query.stride(1),
        block_tables.stride(0),
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


def launch_gather_pages(
    pages: torch.Tensor, block_tables: torch.Tensor, starts: torch.Tensor, blocks: int, out: torch.Tensor
) -> None:
    """Copies every sequence's tokens out of its pages, one sequence after another, a head's once for its group.

    Args:
        pages: ``[pages, kv_heads, page_size, dim]``.
        block_tables: int32 ``[sequences, blocks]``.
        starts: int32 ``[sequences + 1]``; sequence s has the tokens ``starts[s] .. starts[s + 1] - 1`` of ``out``.
        blocks: of the longest sequence.
        out: ``[tokens, heads, dim]``, contiguous; ``heads`` is a multiple of ``kv_heads``.
    """
    _, kv_heads, page_size, dim = pages.shape
    if out.numel() == 0:
        return
    gather_pages_kernel[(blocks, starts.shape[0] - 1, kv_heads)](
        pages,
        block_tables,
        starts,
        out,
        kv_heads,
        out.shape[1] // kv_heads,
        block_tables.stride(0),
        PAGE=page_size,
        DIM=dim,
        BLOCK=triton.next_power_of_2(dim),
        num_warps=1 if dim * pages.element_size() <= 128 else 4,
    )
