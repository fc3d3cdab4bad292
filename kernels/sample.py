"""Triton kernel that chooses tokens: one program for each row, whose loops walk over the vocabulary in blocks."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ruprompt_fast.kernels.sampling_draw import is_sure_of, race
from ruprompt_fast.kernels.sampling_limits import LOWEST, REACH, cut_equals, least_of_top_k, limits_of_top_p
from ruprompt_fast.kernels.sampling_scores import (
    AMBIGUOUS,
    COUNTED,
    DEPTH,
    FOR_HOST,
    KEY,
    LEFT_TO_HOST,
    LOGPROB,
    NOT_FINITE,
    SAMPLED,
    TOP_K,
    TOP_P,
    WANTED,
    float_at,
    process,
)

# 512 threads with a 128-bit load of halves each.
BLOCK = 4096
WARPS = 16

# The search for the limit of top-p ends when this share of the probability is open, which is the chance that a draw
# falls there and the host decides. A log-probability needs to know it better.
_OPEN = tl.constexpr(2.0**-13)
_OPEN_FOR_LOGPROB = tl.constexpr(2.0**-17)


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
    least, is_gathered = tl.full((), LOWEST, tl.float32), tl.full((), 0, tl.int1)
    top_k, top_p, depth_limit = tl.load(words_ptr + TOP_K), float_at(words_ptr, TOP_P), float_at(words_ptr, DEPTH)
    wants_logprob = (flags & LOGPROB) != 0
    if top_k > 0:
        least, size, is_gathered = least_of_top_k(scores_ptr, ids_ptr, largest, top_k, size, BLOCK)
    kept, beyond = tl.full((), REACH, tl.float32), tl.full((), REACH, tl.float32)
    cut_depth = tl.full((), -1.0, tl.float32)
    last_sure, last_possible, is_clear = tl.zeros((), tl.int32), tl.zeros((), tl.int32), tl.full((), 1, tl.int1)
    if top_p < 1.0:
        is_open = tl.where(wants_logprob, _OPEN_FOR_LOGPROB, _OPEN)
        kept, unsure, border, beyond, at_least, at_most, mass, size, is_gathered = limits_of_top_p(
            scores_ptr, ids_ptr, largest, least, top_p, MASS_BAND, is_open, size, is_gathered, BLOCK
        )
        if unsure == border:
            weight = tl.exp(-border)
            sure = (at_least - mass) / weight
            sure = tl.where(kept < 0.0, tl.maximum(sure, 1.0), sure)
            cut_depth = border
            last_sure, last_possible, is_clear = cut_equals(
                scores_ptr, least, largest, border, sure, (at_most - mass) / weight, size, BLOCK
            )
    beyond = tl.minimum(beyond, depth_limit + DEPTH_BAND)
    sure_depth = depth_limit - DEPTH_BAND
    winner, ahead, sure_mass, mass = race(
        scores_ptr,
        ids_ptr,
        tl.load(words_ptr + KEY),
        tl.load(words_ptr + KEY + 1),
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
    if (flags & SAMPLED) != 0:
        token = winner
        if is_gathered:
            token = tl.load(ids_ptr + winner)
        depth = largest - tl.load(scores_ptr + winner)
        is_near = (ahead <= RACE_BAND) | (is_sure_of(depth, winner, kept, cut_depth, last_sure, sure_depth) == 0)
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
    undecided = tl.where((flags & FOR_HOST) != 0, LEFT_TO_HOST, 0)
    logprob = tl.zeros((), tl.float32)
    if (flags & (WANTED | FOR_HOST)) == WANTED:
        needs_scores = (flags & (SAMPLED | LOGPROB)) != 0
        # Rows whose stride is a multiple of 8 are read in pieces of 128 bits, with up to 7 columns that do not count.
        largest, first, is_number = process(
            logits_ptr + tl.multiple_of(row * logits_stride, MULTIPLE),
            words_ptr,
            seen_ptr + row * seen_stride,
            tl.load(last_ids_ptr + row),
            banned_ptr,
            scores_ptr,
            vocab_size,
            readable // MULTIPLE * MULTIPLE,
            (flags & COUNTED) != 0,
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
                undecided = tl.where(is_near, AMBIGUOUS, 0)
        else:
            undecided = tl.where(is_number, 0, NOT_FINITE)
    tl.store(out_ptr, token)
    tl.store(out_ptr + 1, undecided)
    tl.store(out_ptr + 2, logprob.to(tl.int32, bitcast=True))
    tl.store(out_ptr + 3, 0)


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
