"""The draw of the sampling kernel, with the noise of ruprompt_fast.sampling.noise.

The words of the noise are equal, its logarithms as near as float32 allows: a draw says how far ahead its winner is.
"""

from __future__ import annotations

import triton
import triton.language as tl

NO_PLACE = tl.constexpr(2**31 - 1)


@triton.jit
def _mixed(words):
    words ^= words >> 16
    words *= 0x7FEB352D
    words ^= words >> 15
    words *= 0x846CA68B
    return words ^ (words >> 16)


@triton.jit
def random_words(ids, first_key, second_key):
    """The words of ruprompt_fast.sampling.noise.random_words, uint32."""
    words = _mixed(ids.to(tl.uint32, bitcast=True) ^ first_key.to(tl.uint32, bitcast=True))
    return _mixed(words ^ second_key.to(tl.uint32, bitcast=True))


@triton.jit
def log_exponential(words):
    """``log(-log(1 - u))`` of ``u = (words + 0.5) / 2**32``, which is minus the Gumbel noise."""
    unit: tl.constexpr = 2.0**-32
    u = (words.to(tl.float32) + 0.5) * unit
    # Near zero 1 - u has too few digits. The next term of the series is below 1e-8 of the sum.
    series = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * (0.25 + u * (0.2 + u * (1.0 / 6.0))))))
    complement = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * unit
    return tl.log(tl.where(u < 0.0625, series, -tl.log(complement)))


@triton.jit
def race(
    scores_ptr,
    ids_ptr,
    first_key,
    second_key,
    largest,
    least,
    kept,
    cut_depth,
    last_sure,
    last_possible,
    beyond,
    sure_depth,
    size,
    is_gathered,
    BLOCK: tl.constexpr,
):
    """The place of who finishes first of all that may be kept, how far ahead, and two masses.

    The masses are those of what is kept for sure and of what may be.
    """
    best = tl.full((BLOCK,), float("inf"), tl.float32)
    second = tl.full((BLOCK,), float("inf"), tl.float32)
    best_place = tl.full((BLOCK,), NO_PLACE, tl.int32)
    sure_mass = tl.zeros((BLOCK,), tl.float32)
    mass = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        scores = tl.load(scores_ptr + places)
        ids = places
        if is_gathered:
            ids = tl.load(ids_ptr + places)
        depths = tl.where(scores >= least, largest - scores, float("inf"))
        is_possible = (depths <= beyond) & ((depths != cut_depth) | (places <= last_possible))
        is_sure = is_sure_of(depths, places, kept, cut_depth, last_sure, sure_depth)
        weights = tl.exp(-depths)
        mass += tl.where(is_possible, weights, 0.0)
        sure_mass += tl.where(is_sure, weights, 0.0)
        finish = log_exponential(random_words(ids, first_key, second_key)) + depths
        finish = tl.where(is_possible, finish, float("inf"))
        is_better = finish < best
        second = tl.minimum(second, tl.where(is_better, best, finish))
        best_place = tl.where(is_better, places, best_place)
        best = tl.where(is_better, finish, best)
    first = tl.min(best)
    winner = tl.min(tl.where(best == first, best_place, NO_PLACE))
    ahead = tl.min(tl.where(best_place == winner, second, best)) - first
    return winner, ahead, tl.sum(sure_mass), tl.sum(mass)


@triton.jit
def is_sure_of(depths, places, kept, cut_depth, last_sure, sure_depth):
    """Whether tokens are kept however masses are rounded."""
    by_mass = (depths <= kept) | ((depths == cut_depth) & (places <= last_sure))
    return by_mass & ((depths <= sure_depth) | (depths == 0.0))
