"""Where top-k and top-p end, for the sampling kernel: a program's threads look through the scores of one row.

Limits are found by bisection between scores that there are, so a dozen looks find most limits exactly, however many
scores are equal. Once those that can still be chosen fit into one block they are gathered, and a look is at that block
only. The scores of the last block's places that are not of a row are minus infinity.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# No token wins a draw from further below the largest score: noise lies between -3.2 and 22.9.
REACH = tl.constexpr(32.0)
LOWEST = tl.constexpr(float(torch.finfo(torch.float32).min))


@triton.jit
def gather(scores_ptr, ids_ptr, largest, least, depth, size, is_gathered, BLOCK: tl.constexpr):
    """Brings the scores that are at least ``least`` and at most ``depth`` below the largest to the front, in order.

    Their ids go along: those of scores that were not gathered before are their places. Returns how many there are.
    """
    count = 0
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        scores = tl.load(scores_ptr + places)
        ids = places
        if is_gathered:
            ids = tl.load(ids_ptr + places)
        is_wanted = (scores >= least) & (largest - scores <= depth)
        ones = tl.where(is_wanted, 1, 0)
        targets = count + tl.cumsum(ones) - ones
        tl.debug_barrier()  # they may lie in this block, which all threads must have read
        tl.store(scores_ptr + targets, scores, mask=is_wanted)
        tl.store(ids_ptr + targets, ids, mask=is_wanted)
        count += tl.sum(ones)
    rest = count + tl.arange(0, BLOCK)
    tl.debug_barrier()
    tl.store(scores_ptr + rest, float("-inf"), mask=rest < tl.cdiv(count, BLOCK) * BLOCK)
    tl.debug_barrier()
    return count


@triton.jit
def _count_from(scores_ptr, limit, size, BLOCK: tl.constexpr):
    """How many scores are at least ``limit``, the smallest of them, and the largest of the others."""
    count = tl.zeros((BLOCK,), tl.int32)
    above = tl.full((BLOCK,), float("inf"), tl.float32)
    below = tl.full((BLOCK,), float("-inf"), tl.float32)
    for start in range(0, size, BLOCK):
        scores = tl.load(scores_ptr + start + tl.arange(0, BLOCK))
        is_above = scores >= limit
        count += tl.where(is_above, 1, 0)
        above = tl.minimum(above, tl.where(is_above, scores, float("inf")))
        below = tl.maximum(below, tl.where(is_above, float("-inf"), scores))
    return tl.sum(count), tl.min(above), tl.max(below)


@triton.jit
def least_of_top_k(scores_ptr, ids_ptr, largest, top_k, size, BLOCK: tl.constexpr):
    """The ``top_k``-th largest score, or a score that nobody below can win with, if that is smaller.

    Also how many scores are left to look at, and whether they are gathered.
    """
    is_gathered = tl.full((), 0, tl.int1)
    reached, low, below = _count_from(scores_ptr, largest - REACH, size, BLOCK)
    high = largest
    if reached <= top_k:
        low = largest - REACH
        high = low
    # At least top_k scores are not below low, which `reached` says; fewer are above high.
    while low < high:
        if (reached <= BLOCK) & (size > BLOCK):
            size = gather(scores_ptr, ids_ptr, largest, low, float("inf"), size, is_gathered, BLOCK)
            is_gathered = tl.full((), 1, tl.int1)
        middle = low + (high - low) * 0.5
        middle = tl.where(middle > low, middle, high)
        count, above, below = _count_from(scores_ptr, middle, size, BLOCK)
        if count >= top_k:
            low, reached = above, count
        high = tl.where(count == top_k, above, tl.where(count > top_k, high, below))
    return low, size, is_gathered


@triton.jit
def _mass_within(scores_ptr, largest, least, depth, size, BLOCK: tl.constexpr):
    """The mass of what is at most ``depth`` below the largest score, the deepest of it, and the next deeper one.

    Also how many there are.
    """
    mass = tl.zeros((BLOCK,), tl.float32)
    inner = tl.full((BLOCK,), float("-inf"), tl.float32)
    outer = tl.full((BLOCK,), float("inf"), tl.float32)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, size, BLOCK):
        scores = tl.load(scores_ptr + start + tl.arange(0, BLOCK))
        depths = tl.where(scores >= least, largest - scores, float("inf"))
        is_within = depths <= depth
        mass += tl.where(is_within, tl.exp(-depths), 0.0)
        inner = tl.maximum(inner, tl.where(is_within, depths, float("-inf")))
        outer = tl.minimum(outer, tl.where(is_within, float("inf"), depths))
        count += tl.where(is_within, 1, 0)
    return tl.sum(mass), tl.max(inner), tl.min(outer), tl.sum(count)


@triton.jit
def limits_of_top_p(scores_ptr, ids_ptr, largest, least, top_p, band, is_open, size, is_gathered, BLOCK: tl.constexpr):
    """Depths: up to the first all is kept, from the second on it is not sure, beyond the third nothing is.

    Also the lower and upper bound of the mass that the kept reach, the mass up to the first depth, how many scores are
    left to look at, and whether they are gathered.
    """
    total, deepest, _, count = _mass_within(scores_ptr, largest, least, REACH, size, BLOCK)
    at_least, at_most = (top_p - band) * total, (top_p + band) * total
    kept, mass_kept, unsure = tl.full((), -1.0, tl.float32), tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    border, reached, beyond = deepest, total, deepest
    # The last one kept, as the lower bound has it, is from `unsure` to `border` deep.
    while (unsure < border) & (reached - mass_kept > is_open * total):
        middle = unsure + (border - unsure) * 0.5
        middle = tl.where(middle < border, middle, unsure)
        mass, inner, outer, count = _mass_within(scores_ptr, largest, least, middle, size, BLOCK)
        if mass < at_least:
            kept, mass_kept, unsure = inner, mass, outer
        else:
            border, reached = inner, mass
            if mass >= at_most:
                beyond = inner
                if (count <= BLOCK) & (size > BLOCK):
                    size = gather(scores_ptr, ids_ptr, largest, least, beyond, size, is_gathered, BLOCK)
                    is_gathered = tl.full((), 1, tl.int1)
            elif mass + tl.exp(-outer) >= at_most:
                beyond = outer
    return kept, unsure, border, beyond, at_least, at_most, mass_kept, size, is_gathered


@triton.jit
def cut_equals(scores_ptr, least, largest, depth, sure, possible, size, BLOCK: tl.constexpr):
    """Among the scores of one depth, the places of the last of the first ``sure`` and ``possible``.

    Also whether all is clear: it is not where different scores have that depth and are not all kept for sure.
    """
    last_sure, last_possible, last = -1, -1, -1
    count = 0
    low, high = float("inf"), float("-inf")
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        scores = tl.load(scores_ptr + places)
        is_equal = (scores >= least) & (largest - scores == depth)
        ones = tl.where(is_equal, 1, 0)
        before = (count + tl.cumsum(ones) - ones).to(tl.float32)
        last_sure = tl.maximum(last_sure, tl.max(tl.where(is_equal & (before < sure), places, -1)))
        last_possible = tl.maximum(last_possible, tl.max(tl.where(is_equal & (before < possible), places, -1)))
        last = tl.maximum(last, tl.max(tl.where(is_equal, places, -1)))
        low = tl.minimum(low, tl.min(tl.where(is_equal, scores, float("inf"))))
        high = tl.maximum(high, tl.max(tl.where(is_equal, scores, float("-inf"))))
        count += tl.sum(ones)
    return last_sure, last_possible, (last_sure == last) | (low == high)
