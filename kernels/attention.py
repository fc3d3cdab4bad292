"""What the attention kernels over token-major pages have in common: a tile of queries walks over pages of keys."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

# A maximum that no score is below, and finite: the difference of two of them is zero.
LEAST = tl.constexpr(-1e30)
LOG2_E = tl.constexpr(1.4426950408889634)


class Tile(NamedTuple):
    """How a program is cut.

    Attributes:
        rows: pairs of a query and one of its heads.
        keys: tokens that it walks over at a time.
        warps: of 32 threads.
        stages: of Triton's software pipeline.
        dot: whether tensor cores multiply; else every product is an instruction, in float32.
    """

    rows: int
    keys: int
    warps: int
    stages: int = 1
    dot: bool = False


# For heads of up to so many dimensions: within 48 KB of shared memory, without spills and with 128-bit loads on every
# architecture that takes them. Tensor cores multiply half precision from sm_80 on.
_TENSOR_CORE_TILES = (
    (64, Tile(rows=64, keys=64, warps=4, stages=2, dot=True)),
    (128, Tile(rows=64, keys=32, warps=4, stages=2, dot=True)),
    (256, Tile(rows=32, keys=16, warps=4, stages=2, dot=True)),
)
_HALF_TILES = (
    (32, Tile(rows=32, keys=32, warps=4)),
    (64, Tile(rows=32, keys=16, warps=4)),
    (256, Tile(rows=16, keys=16, warps=8)),
)
_FLOAT_TILES = (
    (32, Tile(rows=32, keys=16, warps=4)),
    (64, Tile(rows=32, keys=16, warps=8)),
    (256, Tile(rows=16, keys=16, warps=8)),
)

MOST_DIM = 256
"""Dimensions of a head that the tiles hold."""


@triton.jit
def group_of_block(starts_ptr, groups, block, QUERIES: tl.constexpr):
    """The group whose queries a block has, or ``groups`` for what comes after the last one.

    Group g's blocks begin at ``starts[g] // QUERIES + g``, so no two groups share one, and there are at most
    ``queries // QUERIES + groups + 1`` of them.
    """
    low = 0
    high = groups + 1
    while high - low > 1:
        middle = (low + high) // 2
        begins = tl.load(starts_ptr + middle) // QUERIES + middle
        low = tl.where(begins <= block, middle, low)
        high = tl.where(begins <= block, high, middle)
    return low


@triton.jit
def soft_capped(scores, softcap):
    """``softcap * tanh(scores / softcap)``."""
    x = scores * (1.0 / softcap)
    square = x * x
    # Near zero the quotient loses the digits that its subtraction cancels.
    near = x * (1.0 + square * (-1.0 / 3 + square * (2.0 / 15 + square * (-17.0 / 315))))
    decay = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - decay) / (1.0 + decay)
    return softcap * tl.where(square < 0.04, near, tl.where(x < 0, -far, far))


@triton.jit
def page_tile(
    pages_ptr, pages, places, kv_head, kv_heads, inside, PAGE: tl.constexpr, DIM: tl.constexpr, BLOCK: tl.constexpr
):
    """``[keys, BLOCK]``: what ``pages`` have at ``places`` for one head; zero outside, whatever lies there."""
    columns = tl.arange(0, BLOCK)
    rows = ((pages.to(tl.int64) * kv_heads + kv_head) * PAGE + places) * DIM
    return tl.load(
        pages_ptr + rows[:, None] + columns[None, :], mask=inside[:, None] & (columns < DIM)[None, :], other=0.0
    )


@triton.jit
def attend(
    query,
    first,
    stop,
    key_ptr,
    value_ptr,
    table_ptr,
    kv_head,
    kv_heads,
    begin,
    end,
    scaling,
    softcap,
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
    """Rows ``query`` ``[ROWS, BLOCK_D]`` over the tokens ``begin .. end - 1``; row r sees ``first[r] .. stop[r] - 1``.

    No ``stop`` is above ``end``. ``scaling`` and ``softcap`` are those of scores in units of log 2: multiplied by
    ``LOG2_E``.

    Returns:
        The sum of the values weighted by ``2 ** (score - maximum)`` ``[ROWS, BLOCK_V]``, the maxima, the sums of the
        weights.
    """
    maximum = tl.full((ROWS,), LEAST, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, BLOCK_V), tl.float32)
    for start in range(begin, end, KEYS):
        tokens = start + tl.arange(0, KEYS)
        inside = tokens < end
        pages = tl.load(table_ptr + tokens // PAGE, mask=inside, other=0)
        key = page_tile(key_ptr, pages, tokens % PAGE, kv_head, kv_heads, inside, PAGE, HEAD_DIM, BLOCK_D)
        if DOT:
            scores = tl.dot(query, tl.trans(key))
        else:
            scores = tl.dot(query.to(tl.float32), tl.trans(key.to(tl.float32)), input_precision="ieee")
        scores *= scaling
        if SOFTCAP:
            scores = soft_capped(scores, softcap)
        seen = (tokens[None, :] >= first[:, None]) & (tokens[None, :] < stop[:, None])
        scores = tl.where(seen, scores, float("-inf"))
        higher = tl.maximum(maximum, tl.max(scores, axis=1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(maximum - higher)
        total = total * shrink + tl.sum(weights, axis=1)
        weighted *= shrink[:, None]
        value = page_tile(value_ptr, pages, tokens % PAGE, kv_head, kv_heads, inside, PAGE, VALUE_DIM, BLOCK_V)
        if DOT:
            weighted = tl.dot(weights.to(value.dtype), value, weighted)
        else:
            weighted = tl.dot(weights, value.to(tl.float32), weighted, input_precision="ieee")
        maximum = higher
    return weighted, maximum, total


def block_of(dim: int) -> int:
    """Columns of a tile that holds ``dim``: a power of two, and what ``tl.dot`` takes."""
    return max(16, triton.next_power_of_2(dim))


def tile_for(head_dim: int, value_dim: int, dtype: torch.dtype, has_fast_dot: bool) -> Tile:
    """The tile for heads of at most ``MOST_DIM`` dimensions; ``has_fast_dot`` of the card, from sm_80 on."""
    # Tensor cores would take digits from float32.
    half_tiles = _TENSOR_CORE_TILES if has_fast_dot else _HALF_TILES
    tiles = _FLOAT_TILES if dtype is torch.float32 else half_tiles
    return next(tile for most, tile in tiles if max(head_dim, value_dim) <= most)
