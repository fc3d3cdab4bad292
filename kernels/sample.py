"""Triton kernel that chooses tokens: one program for each row, whose loops walk over the vocabulary in blocks.

Scores are kept in float32 where a row needs more than one look at them. Limits of filters are found by bisection
between scores that there are, so a dozen looks find most limits exactly, however many scores are equal. Once those that
can still be chosen fit into one block they are gathered, and a look is at that block only.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

# 512 threads with a 128-bit load of halves each.
BLOCK = 4096
WARPS = 16

# Where a row's settings stand, what they ask for, and why a row is not decided: SettingsWord, SettingsFlag and
# Undecided of ruprompt_fast.ops.sample.
_KEY = tl.constexpr(1)
_TEMPERATURE = tl.constexpr(3)
_PENALTY = tl.constexpr(4)
_TOP_K = tl.constexpr(5)
_TOP_P = tl.constexpr(6)
_DEPTH = tl.constexpr(7)
_BANNED = tl.constexpr(8)
_NUM_BANNED = tl.constexpr(8)
_WANTED = tl.constexpr(1)
_SAMPLED = tl.constexpr(2)
_LOGPROB = tl.constexpr(4)
_FOR_HOST = tl.constexpr(8)
_LEFT_TO_HOST = tl.constexpr(1)
_AMBIGUOUS = tl.constexpr(2)
_NOT_FINITE = tl.constexpr(4)

# Nobody wins a draw from further below the largest score: noise lies between -3.2 and 22.9.
_REACH = tl.constexpr(32.0)
_NO_PLACE = tl.constexpr(2**31 - 1)
_LOWEST = tl.constexpr(float(torch.finfo(torch.float32).min))
# The search for the limit of top-p ends when this share of the probability is open, which is the chance that a draw
# falls there and the host decides. A log-probability needs to know it better.
_OPEN = tl.constexpr(2.0**-13)
_OPEN_FOR_LOGPROB = tl.constexpr(2.0**-17)


@triton.jit
def _float(words_ptr, word: tl.constexpr):
    return tl.load(words_ptr + word).to(tl.float32, bitcast=True)


@triton.jit
def _ban(scores, ids, words_ptr):
    for place in tl.static_range(_NUM_BANNED):
        scores = tl.where(ids == tl.load(words_ptr + _BANNED + place), float("-inf"), scores)
    return scores


@triton.jit
def _penalized(scores, ids, seen_ptr, last_id, penalty, vocab_size):
    words = tl.load(seen_ptr + ids // 32, mask=ids < vocab_size, other=0)
    is_seen = (((words >> (ids % 32)) & 1) != 0) | (ids == last_id)
    return tl.where(is_seen, tl.where(scores < 0, scores * penalty, tl.math.div_rn(scores, penalty)), scores)


@triton.jit
def _process(
    logits_ptr,
    words_ptr,
    seen_ptr,
    last_id,
    banned_ptr,
    scores_ptr,
    vocab_size,
    readable,
    is_kept,
    HAS_BANNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest score, its first id, and whether it is a number and no score is NaN; keeps the scores if asked to."""
    penalty, temperature = _float(words_ptr, _PENALTY), _float(words_ptr, _TEMPERATURE)
    has_more_banned = tl.load(words_ptr + _BANNED) >= 0
    best = tl.full((BLOCK,), float("-inf"), tl.float32)
    best_id = tl.full((BLOCK,), _NO_PLACE, tl.int32)
    is_nan = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, vocab_size, BLOCK):
        ids = start + tl.arange(0, BLOCK)
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
            scores = tl.math.div_rn(scores, temperature)
        is_nan = tl.where(scores != scores, 1, is_nan)
        is_better = scores > best
        best_id = tl.where(is_better, ids, best_id)
        best = tl.where(is_better, scores, best)
        if is_kept:
            tl.store(scores_ptr + ids, scores)
    largest = tl.max(best)
    first = tl.min(tl.where(best == largest, best_id, _NO_PLACE))
    is_number = (largest > float("-inf")) & (largest < float("inf")) & (tl.max(is_nan) == 0)
    return largest, first, is_number


@triton.jit
def _gather(scores_ptr, ids_ptr, largest, least, depth, size, is_gathered, BLOCK: tl.constexpr):
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
def _least_of_top_k(scores_ptr, ids_ptr, largest, top_k, size, BLOCK: tl.constexpr):
    """The ``top_k``-th largest score, or a score that nobody below can win with, if that is smaller.

    Also how many scores are left to look at, and whether they are gathered.
    """
    is_gathered = tl.full((), 0, tl.int1)
    reached, low, below = _count_from(scores_ptr, largest - _REACH, size, BLOCK)
    high = largest
    if reached <= top_k:
        low = largest - _REACH
        high = low
    # At least top_k scores are not below low, which `reached` says; fewer are above high.
    while low < high:
        if (reached <= BLOCK) & (size > BLOCK):
            size = _gather(scores_ptr, ids_ptr, largest, low, float("inf"), size, is_gathered, BLOCK)
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
def _limits_of_top_p(scores_ptr, ids_ptr, largest, least, top_p, band, is_open, size, is_gathered, BLOCK: tl.constexpr):
    """Depths: up to the first all is kept, from the second on it is not sure, beyond the third nothing is.

    Also the lower and upper bound of the mass that the kept reach, the mass up to the first depth, how many scores are
    left to look at, and whether they are gathered.
    """
    total, deepest, _, count = _mass_within(scores_ptr, largest, least, _REACH, size, BLOCK)
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
                    size = _gather(scores_ptr, ids_ptr, largest, least, beyond, size, is_gathered, BLOCK)
                    is_gathered = tl.full((), 1, tl.int1)
            elif mass + tl.exp(-outer) >= at_most:
                beyond = outer
    return kept, unsure, border, beyond, at_least, at_most, mass_kept, size, is_gathered


@triton.jit
def _cut_equals(scores_ptr, least, largest, depth, sure, possible, size, BLOCK: tl.constexpr):
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
def _log_exponential(words):
    """``log(-log(1 - u))`` of ``u = (words + 0.5) / 2**32``, which is minus the Gumbel noise."""
    unit: tl.constexpr = 2.0**-32
    u = (words.to(tl.float32) + 0.5) * unit
    # Near zero 1 - u has too few digits. The next term of the series is below 1e-8 of the sum.
    series = u * (1.0 + u * (0.5 + u * (1.0 / 3.0 + u * (0.25 + u * (0.2 + u * (1.0 / 6.0))))))
    complement = ((words ^ 0xFFFFFFFF).to(tl.float32) + 0.5) * unit
    return tl.log(tl.where(u < 0.0625, series, -tl.log(complement)))


@triton.jit
def _race(
    scores_ptr,
    ids_ptr,
    words_ptr,
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
    first_key, second_key = tl.load(words_ptr + _KEY), tl.load(words_ptr + _KEY + 1)
    best = tl.full((BLOCK,), float("inf"), tl.float32)
    second = tl.full((BLOCK,), float("inf"), tl.float32)
    best_place = tl.full((BLOCK,), _NO_PLACE, tl.int32)
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
        is_sure = _is_sure(depths, places, kept, cut_depth, last_sure, sure_depth)
        weights = tl.exp(-depths)
        mass += tl.where(is_possible, weights, 0.0)
        sure_mass += tl.where(is_sure, weights, 0.0)
        finish = _log_exponential(random_words(ids, first_key, second_key)) + depths
        finish = tl.where(is_possible, finish, float("inf"))
        is_better = finish < best
        second = tl.minimum(second, tl.where(is_better, best, finish))
        best_place = tl.where(is_better, places, best_place)
        best = tl.where(is_better, finish, best)
    first = tl.min(best)
    winner = tl.min(tl.where(best == first, best_place, _NO_PLACE))
    ahead = tl.min(tl.where(best_place == winner, second, best)) - first
    return winner, ahead, tl.sum(sure_mass), tl.sum(mass)


@triton.jit
def _is_sure(depths, places, kept, cut_depth, last_sure, sure_depth):
    """Whether tokens are kept however masses are rounded."""
    by_mass = (depths <= kept) | ((depths == cut_depth) & (places <= last_sure))
    return by_mass & ((depths <= sure_depth) | (depths == 0.0))


@triton.jit
def _choose(
    scores_ptr,
    ids_ptr,
    words_ptr,
    flags,
    largest,
    token,
    size,
    MASS_BAND: tl.constexpr,
    RACE_BAND: tl.constexpr,
    DEPTH_BAND: tl.constexpr,
    LOGPROB_BAND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The token of a row that samples or wants a log-probability, whether it is ambiguous, and the log-probability."""
    least, is_gathered = tl.full((), _LOWEST, tl.float32), tl.full((), 0, tl.int1)
    top_k, top_p, depth_limit = tl.load(words_ptr + _TOP_K), _float(words_ptr, _TOP_P), _float(words_ptr, _DEPTH)
    wants_logprob = (flags & _LOGPROB) != 0
    if top_k > 0:
        least, size, is_gathered = _least_of_top_k(scores_ptr, ids_ptr, largest, top_k, size, BLOCK)
    kept, beyond = tl.full((), _REACH, tl.float32), tl.full((), _REACH, tl.float32)
    cut_depth = tl.full((), -1.0, tl.float32)
    last_sure, last_possible, is_clear = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.full((), 1, tl.int1)
    if top_p < 1.0:
        is_open = tl.where(wants_logprob, _OPEN_FOR_LOGPROB, _OPEN)
        kept, unsure, border, beyond, at_least, at_most, mass, size, is_gathered = _limits_of_top_p(
            scores_ptr, ids_ptr, largest, least, top_p, MASS_BAND, is_open, size, is_gathered, BLOCK
        )
        if unsure == border:
            weight = tl.exp(-border)
            sure = (at_least - mass) / weight
            sure = tl.where(kept < 0.0, tl.maximum(sure, 1.0), sure)
            cut_depth = border
            last_sure, last_possible, is_clear = _cut_equals(
                scores_ptr, least, largest, border, sure, (at_most - mass) / weight, size, BLOCK
            )
    beyond = tl.minimum(beyond, depth_limit + DEPTH_BAND)
    sure_depth = depth_limit - DEPTH_BAND
    winner, ahead, sure_mass, mass = _race(
        scores_ptr,
        ids_ptr,
        words_ptr,
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
        BLOCK,
    )
    is_near, depth = tl.full((), 0, tl.int1), tl.zeros((), tl.float32)
    if (flags & _SAMPLED) != 0:
        token = winner
        if is_gathered:
            token = tl.load(ids_ptr + winner)
        depth = largest - tl.load(scores_ptr + winner)
        is_near = (ahead <= RACE_BAND) | (_is_sure(depth, winner, kept, cut_depth, last_sure, sure_depth) == 0)
        is_near = is_near | ((depth == cut_depth) & (is_clear == 0))
    is_near = is_near | (wants_logprob & (mass - sure_mass > LOGPROB_BAND * mass))
    logprob = -depth - tl.log((sure_mass + mass) * 0.5)
    return token, is_near, tl.where(wants_logprob, logprob, 0.0)


@triton.jit(do_not_specialize=["vocab_size", "readable"])
def sample_kernel(
    logits_ptr,
    settings_ptr,
    seen_ptr,
    last_ids_ptr,
    banned_ptr,
    scores_ptr,
    ids_ptr,
    out_ptr,
    vocab_size,
    readable,
    logits_stride,
    settings_stride,
    seen_stride,
    scores_stride,
    HAS_BANNED: tl.constexpr,
    MULTIPLE: tl.constexpr,
    MASS_BAND: tl.constexpr,
    RACE_BAND: tl.constexpr,
    DEPTH_BAND: tl.constexpr,
    LOGPROB_BAND: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    words_ptr = settings_ptr + row * settings_stride
    scores_ptr += row * scores_stride
    ids_ptr += row * scores_stride
    out_ptr += row * 4
    flags = tl.load(words_ptr)
    token = tl.zeros((), tl.int32)
    undecided = tl.where((flags & _FOR_HOST) != 0, _LEFT_TO_HOST, 0)
    logprob = tl.zeros((), tl.float32)
    if (flags & (_WANTED | _FOR_HOST)) == _WANTED:
        needs_scores = (flags & (_SAMPLED | _LOGPROB)) != 0
        # Rows whose stride is a multiple of 8 are read in pieces of 128 bits, with up to 7 columns that do not count.
        largest, first, is_number = _process(
            logits_ptr + tl.multiple_of(row * logits_stride, MULTIPLE),
            words_ptr,
            seen_ptr + row * seen_stride,
            tl.load(last_ids_ptr + row),
            banned_ptr,
            scores_ptr,
            vocab_size,
            readable // MULTIPLE * MULTIPLE,
            needs_scores,
            HAS_BANNED,
            BLOCK,
        )
        if is_number:
            token = first
            if needs_scores:
                tl.debug_barrier()  # other threads read what these have written
                token, is_near, logprob = _choose(
                    scores_ptr,
                    ids_ptr,
                    words_ptr,
                    flags,
                    largest,
                    first,
                    vocab_size,
                    MASS_BAND,
                    RACE_BAND,
                    DEPTH_BAND,
                    LOGPROB_BAND,
                    BLOCK,
                )
                undecided = tl.where(is_near, _AMBIGUOUS, 0)
        else:
            undecided = tl.where(is_number, 0, _NOT_FINITE)
    tl.store(out_ptr, token)
    tl.store(out_ptr + 1, undecided)
    tl.store(out_ptr + 2, logprob.to(tl.int32, bitcast=True))
    tl.store(out_ptr + 3, 0)


@triton.jit
def random_words_kernel(keys_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """The noise alone, for tests: int32 [rows, size] of keys int32 [rows, 2]."""
    row = tl.program_id(0)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    words = random_words(ids, tl.load(keys_ptr + row * 2), tl.load(keys_ptr + row * 2 + 1))
    tl.store(out_ptr + row * size + ids, words.to(tl.int32, bitcast=True), mask=ids < size)


def score_columns(vocab_size: int) -> int:
    """The columns of the scores that a launch keeps: whole blocks."""
    return triton.cdiv(vocab_size, BLOCK) * BLOCK


def launch_sample(
    logits: torch.Tensor,
    settings: torch.Tensor,
    seen: torch.Tensor,
    last_ids: torch.Tensor,
    banned: torch.Tensor | None,
    scores: torch.Tensor,
    ids: torch.Tensor,
    out: torch.Tensor,
    vocab_size: int,
    readable: int,
    multiple: int,
    bands: tuple[float, float, float, float],
) -> None:
    """Fills ``out`` int32 ``[rows, 4]``; see :func:`ruprompt_fast.ops.sample`.

    ``scores`` is float32 ``[rows, score_columns(vocab_size)]``, ``ids`` int32 likewise, ``banned`` is uint8. Of
    ``banned`` and a row of logits ``readable`` columns are there to be read; they and the stride are divisible by
    ``multiple``.
    """
    mass_band, race_band, depth_band, logprob_band = bands
    sample_kernel[(out.shape[0],)](
        logits,
        settings,
        seen,
        last_ids,
        banned,
        scores,
        ids,
        out,
        vocab_size,
        readable,
        logits.stride(0),
        settings.stride(0),
        seen.stride(0),
        scores.stride(0),
        HAS_BANNED=banned is not None,
        MULTIPLE=multiple,
        MASS_BAND=mass_band,
        RACE_BAND=race_band,
        DEPTH_BAND=depth_band,
        LOGPROB_BAND=logprob_band,
        BLOCK=BLOCK,
        num_warps=WARPS,
    )
