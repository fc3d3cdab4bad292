"""The Triton kernel of decoding: one query token per row over its pages, in parts."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ruprompt_fast.kernels.attention import LEAST, LOG2_E, Tile, attend, soft_capped

SPLIT = 256
"""Tokens of a part; its size does not depend on how long a row is, so neither does a row's rounding."""

# Query heads that a program without tensor cores computes at most: with four the loads should take longer.
_MOST_HEADS = 4


@triton.jit
def head_tile(pages_ptr, slots, seen, DIM: tl.constexpr, BLOCK: tl.constexpr):
    """``[1, tokens, BLOCK]``: what a head has in ``slots``, zero where it is not seen, whatever lies there."""
    # Three dimensions from the load on: the layout that reads 128 bits a thread then stays that of all that follows.
    columns = tl.arange(0, BLOCK)[None, None, :]
    mask = seen[None, :, None]
    if DIM != BLOCK:
        mask = mask & (columns < DIM)
    return tl.load(pages_ptr + slots[None, :, None] * DIM + columns, mask=mask, other=0.0)


@triton.jit
def store_heads(pointer, heads, present, result, DIM: tl.constexpr, BLOCK: tl.constexpr):
    columns = tl.arange(0, BLOCK)
    tl.store(
        pointer + heads.to(tl.int64)[:, None] * DIM + columns[None, :],
        result.to(pointer.dtype.element_ty),
        mask=present[:, None] & (columns < DIM)[None, :],
    )


@triton.jit
def by_lanes(
    query,
    key_ptr,
    value_ptr,
    table_ptr,
    kv_head,
    kv_heads,
    begin,
    end,
    softcap,
    SOFTCAP: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Queries ``[HEADS, BLOCK_D]`` over the tokens ``begin .. end - 1``, of which there are some.

    Every place of a tile has a maximum and sums of its own, which are added up once after the walk: within it nothing
    is exchanged between warps.

    Returns:
        The sum of the values weighted by ``2 ** (score - maximum)`` ``[HEADS, BLOCK_V]``, the maxima, the sums of the
        weights.
    """
    maximum = tl.full((HEADS, TOKENS), LEAST, tl.float32)
    total = tl.zeros((HEADS, TOKENS), tl.float32)
    weighted = tl.zeros((HEADS, TOKENS, BLOCK_V), tl.float32)
    query = query[:, None, :]
    for start in range(begin, end, TOKENS):
        tokens = start + tl.arange(0, TOKENS)
        seen = tokens < end
        pages = tl.load(table_ptr + tokens // PAGE, mask=seen, other=0).to(tl.int64)
        slots = (pages * kv_heads + kv_head) * PAGE + tokens % PAGE
        key = head_tile(key_ptr, slots, seen, HEAD_DIM, BLOCK_D)
        value = head_tile(value_ptr, slots, seen, VALUE_DIM, BLOCK_V)
        scores = tl.sum(query * key.to(tl.float32), axis=2)
        if SOFTCAP:
            scores = soft_capped(scores, softcap)
        scores = tl.where(seen[None, :], scores, float("-inf"))
        higher = tl.maximum(maximum, scores)
        shrink = tl.exp2(maximum - higher)
        weights = tl.exp2(scores - higher)
        total = total * shrink + weights
        weighted = weighted * shrink[:, :, None] + weights[:, :, None] * value.to(tl.float32)
        maximum = higher
    highest = tl.max(maximum, axis=1)
    shrink = tl.exp2(maximum - highest[:, None])
    return tl.sum(weighted * shrink[:, :, None], axis=1), highest, tl.sum(total * shrink, axis=1)


@triton.jit
def _place_of_row(kv_heads, group):
    """Where a row's heads begin: parts lie one after another, ``[parts, rows, heads, dim]``."""
    return (tl.program_id(2) * tl.num_programs(0) + tl.program_id(0).to(tl.int64)) * kv_heads * group


# As in prefill: where a step's tables lie must not make Triton compile again.
@triton.jit(do_not_specialize=["tables_ptr", "lens_ptr", "first_ptr", "window", "table_stride"])
def paged_decode_kernel(
    query_ptr,
    key_ptr,
    value_ptr,
    tables_ptr,
    lens_ptr,
    first_ptr,
    out_ptr,
    lse_ptr,
    scaling,
    softcap,
    window,
    kv_heads,
    group,
    row_stride,
    head_stride,
    table_stride,
    FIRST: tl.constexpr,
    WINDOW: tl.constexpr,
    SOFTCAP: tl.constexpr,
    PARTS: tl.constexpr,
    DOT: tl.constexpr,
    PAGE: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
    SPLIT: tl.constexpr,
    HEADS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    blocks_of_group = tl.cdiv(group, HEADS)
    kv_head = tl.program_id(1) // blocks_of_group
    part = tl.program_id(2)
    in_group = tl.program_id(1) % blocks_of_group * HEADS + tl.arange(0, HEADS)
    present = in_group < group
    heads = kv_head * group + in_group
    context = tl.load(lens_ptr + row)
    first = tl.maximum(context - window, 0) if WINDOW else 0
    if FIRST:
        first = tl.maximum(first, tl.load(first_ptr + row))
    begin = tl.maximum(part * SPLIT, first)
    end = tl.minimum(part * SPLIT + SPLIT, context)
    if begin < end:
        columns = tl.arange(0, BLOCK_D)
        query = tl.load(
            query_ptr + row * row_stride + heads[:, None] * head_stride + columns[None, :],
            mask=present[:, None] & (columns < HEAD_DIM)[None, :],
            other=0.0,
        )
        table_ptr = tables_ptr + row * table_stride
        if DOT:
            weighted, maximum, total = attend(
                query,
                tl.zeros_like(heads),
                tl.zeros_like(heads) + end,
                key_ptr,
                value_ptr,
                table_ptr,
                kv_head,
                kv_heads,
                begin,
                end,
                scaling,
                softcap,
                SOFTCAP,
                True,
                PAGE,
                HEAD_DIM,
                VALUE_DIM,
                BLOCK_D,
                BLOCK_V,
                HEADS,
                TOKENS,
            )
        else:
            weighted, maximum, total = by_lanes(
                query.to(tl.float32) * scaling,
                key_ptr,
                value_ptr,
                table_ptr,
                kv_head,
                kv_heads,
                begin,
                end,
                softcap,
                SOFTCAP,
                PAGE,
                HEAD_DIM,
                VALUE_DIM,
                BLOCK_D,
                BLOCK_V,
                HEADS,
                TOKENS,
            )
        place = _place_of_row(kv_heads, group)
        store_heads(out_ptr + place * VALUE_DIM, heads, present, weighted / total[:, None], VALUE_DIM, BLOCK_V)
        if PARTS:
            tl.store(lse_ptr + place + heads, (maximum + tl.log2(total)) / LOG2_E, mask=present)
    elif PARTS:
        place = _place_of_row(kv_heads, group)
        tl.store(lse_ptr + place + heads, tl.full((HEADS,), float("-inf"), tl.float32), mask=present)
    else:
        place = _place_of_row(kv_heads, group)
        zeros = tl.zeros((HEADS, BLOCK_V), tl.float32)
        store_heads(out_ptr + place * VALUE_DIM, heads, present, zeros, VALUE_DIM, BLOCK_V)


def decode_tile(group: int, head_dim: int, value_dim: int, fast_dot: bool) -> Tile:
    """The tile for heads of this size, ``group`` of which share keys and values.

    Args:
        group: query heads of one key head.
        head_dim: of queries and keys.
        value_dim: of values.
        fast_dot: whether tensor cores multiply these numbers.
    """
    block = triton.next_power_of_2(max(head_dim, value_dim))
    # Tensor cores compute no fewer than 16 heads.
    if fast_dot and group > _MOST_HEADS and block <= 256:
        return Tile(rows=16, keys=64 if block <= 128 else 32, warps=4, stages=3, dot=True)
    # 8192 sums are 32 registers in each of 256 threads. With more of them, no two programs fit into an old card's
    # multiprocessor, and with fewer tokens at a time a program waits for memory more often.
    heads = min(triton.next_power_of_2(group), _MOST_HEADS, max(512 // block, 1))
    return Tile(rows=heads, keys=min(max(8192 // (heads * block), 16), SPLIT), warps=8)


def num_parts(blocks: int, page_size: int) -> int:
    """Parts of rows whose block tables have this many entries; one at least, which writes the zeros of padding."""
    return max(1, triton.cdiv(blocks * page_size, SPLIT))


def launch_decode(
    query: torch.Tensor,
    key_pages: torch.Tensor,
    value_pages: torch.Tensor,
    block_tables: torch.Tensor,
    context_lens: torch.Tensor,
    first_tokens: torch.Tensor | None,
    out: torch.Tensor,
    lse: torch.Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    tile: Tile,
) -> None:
    """Attention of every row from its first token on, 0 without ``first_tokens``, over its context.

    Without ``lse`` there is one part, and ``out`` is ``[rows, heads, value_dim]``. With it, ``out`` is float32
    ``[parts, rows, heads, value_dim]`` and ``lse`` ``[parts, rows, heads]`` has the logarithms of the sums of weights:
    minus infinity where a part has seen nothing, and then has nothing in ``out``.
    """
    rows, heads, head_dim = query.shape
    _, kv_heads, page_size, value_dim = value_pages.shape
    group = heads // kv_heads
    parts = num_parts(block_tables.shape[1], page_size)
    if rows == 0:
        return
    paged_decode_kernel[(rows, kv_heads * triton.cdiv(group, tile.rows), parts)](
        query,
        key_pages,
        value_pages,
        block_tables,
        context_lens,
        context_lens if first_tokens is None else first_tokens,
        out,
        out if lse is None else lse,
        # Scores in units of log 2: the kernel raises two to them.
        scaling * LOG2_E.value,
        (softcap or 0.0) * LOG2_E.value,
        min(sliding_window or 0, 2**31 - 1),
        kv_heads,
        group,
        query.stride(0),
        query.stride(1),
        block_tables.stride(0),
        FIRST=first_tokens is not None,
        WINDOW=sliding_window is not None,
        SOFTCAP=softcap is not None,
        PARTS=lse is not None,
        DOT=tile.dot,
        PAGE=page_size,
        HEAD_DIM=head_dim,
        VALUE_DIM=value_dim,
        BLOCK_D=_block(head_dim, tile),
        BLOCK_V=_block(value_dim, tile),
        SPLIT=SPLIT,
        HEADS=tile.rows,
        TOKENS=tile.keys,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )


def _block(dim: int, tile: Tile) -> int:
    return max(triton.next_power_of_2(dim), 16 if tile.dot else 1)
