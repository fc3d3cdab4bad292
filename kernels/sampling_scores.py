"""The scores of a row for the sampling kernel: logits after penalties, bans and temperature.

They are kept in float32 where a row needs more than one look at them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ruprompt_fast.kernels.sampling_draw import NO_PLACE

# Where a row's settings stand, what they ask for, and why a row is not decided: SettingsWord, SettingsFlag and
# Undecided of ruprompt_fast.ops.sample.
KEY = tl.constexpr(1)
TEMPERATURE = tl.constexpr(3)
PENALTY = tl.constexpr(4)
TOP_K = tl.constexpr(5)
TOP_P = tl.constexpr(6)
DEPTH = tl.constexpr(7)
BANNED = tl.constexpr(8)
NUM_BANNED = tl.constexpr(8)
WANTED = tl.constexpr(1)
SAMPLED = tl.constexpr(2)
LOGPROB = tl.constexpr(4)
FOR_HOST = tl.constexpr(8)
COUNTED = tl.constexpr(16)
LEFT_TO_HOST = tl.constexpr(1)
AMBIGUOUS = tl.constexpr(2)
NOT_FINITE = tl.constexpr(4)

_INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def float_at(words_ptr, word: tl.constexpr):
    return tl.load(words_ptr + word).to(tl.float32, bitcast=True)


@triton.jit
def _divide(dividend, divisor):
    """The quotient rounded to the nearest float32, as NumPy does."""
    # Triton 3.4 and 3.5 make a div_rn that takes subnormal numbers for zero.
    if _INTERPRETED:
        return tl.math.div_rn(dividend, divisor)
    return tl.inline_asm_elementwise(
        "div.rn.f32 $0, $1, $2;", "=f,f,f", [dividend, divisor], dtype=tl.float32, is_pure=True, pack=1
    )


@triton.jit
def _ban(scores, ids, words_ptr):
    for place in tl.static_range(NUM_BANNED):
        scores = tl.where(ids == tl.load(words_ptr + BANNED + place), float("-inf"), scores)
    return scores


@triton.jit
def _penalized(scores, ids, seen_ptr, last_id, penalty, vocab_size):
    words = tl.load(seen_ptr + ids // 32, mask=ids < vocab_size, other=0)
    is_seen = (((words >> (ids % 32)) & 1) != 0) | (ids == last_id)
    return tl.where(is_seen, tl.where(scores < 0, scores * penalty, _divide(scores, penalty)), scores)


@triton.jit
def _subtract_counts(logits_ptr, seen_ptr, last_id, scores_ptr, vocab_size, readable, BLOCK: tl.constexpr):
    """Scores that are the logits less what the counted tokens lose."""
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        logits = tl.load(logits_ptr + ids, mask=ids < readable, other=float("-inf"))
        tl.store(scores_ptr + ids, logits.to(tl.float32))
    tl.debug_barrier()
    size = tl.load(seen_ptr)
    is_last_counted = tl.zeros((), tl.int32)
    for start in range(0, size, BLOCK):
        places = start + tl.arange(0, BLOCK)
        ids = tl.load(seen_ptr + 2 + places, mask=places < size, other=-1)
        is_last = ids == last_id
        amounts = tl.load(seen_ptr + 2 + size + tl.where(is_last, size, 0) + places, mask=places < size, other=0)
        scores = tl.load(scores_ptr + ids, mask=places < size, other=0.0)
        tl.store(scores_ptr + ids, scores - amounts.to(tl.float32, bitcast=True), mask=places < size)
        is_last_counted = tl.maximum(is_last_counted, tl.max(tl.where(is_last, 1, 0)))
    if (is_last_counted == 0) & (last_id < vocab_size):
        score = tl.load(scores_ptr + last_id)
        tl.store(scores_ptr + last_id, score - tl.load(seen_ptr + 1).to(tl.float32, bitcast=True))
    tl.debug_barrier()


@triton.jit
def process(
    logits_ptr,
    words_ptr,
    seen_ptr,
    last_id,
    banned_ptr,
    scores_ptr,
    vocab_size,
    readable,
    is_counted,
    is_kept,
    HAS_BANNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest score, its first id, and whether it is a number and no score is NaN; keeps the scores if asked to."""
    if is_counted:
        _subtract_counts(logits_ptr, seen_ptr, last_id, scores_ptr, vocab_size, readable, BLOCK)
    penalty, temperature = float_at(words_ptr, PENALTY), float_at(words_ptr, TEMPERATURE)
    has_more_banned = tl.load(words_ptr + BANNED) >= 0
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK,), NO_PLACE, tl.int32)
    is_nan = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
        if is_counted:
            scores = tl.load(scores_ptr + ids)
        else:
            scores = tl.load(logits_ptr + ids, mask=ids < readable, other=float("-inf")).to(tl.float32)
        if penalty != 1.0:
            scores = _penalized(scores, ids, seen_ptr, last_id, penalty, vocab_size)
        if HAS_BANNED:
            is_banned = tl.load(banned_ptr + ids, mask=ids < readable, other=1)
            scores = tl.where(is_banned != 0, float("-inf"), scores)
        if has_more_banned:
            scores = _ban(scores, ids, words_ptr)
        scores = tl.where(ids < vocab_size, scores, float("-inf"))
        if temperature != 1.0:
            scores = _divide(scores, temperature)
        is_nan = tl.where(scores != scores, 1, is_nan)
        is_better = scores > best
        best_id = tl.where(is_better, ids, best_id)
        best = tl.where(is_better, scores, best)
        if is_kept:
            tl.store(scores_ptr + ids, scores)
    largest = tl.max(best)
    first = tl.min(tl.where(best == largest, best_id, NO_PLACE))
    is_number = (largest > float("-inf")) & (largest < float("inf")) & (tl.max(is_nan) == 0)
    return largest, first, is_number
