"""Choosing the next token of every row of logits on the device, where the NumPy sampler would choose the same."""

from __future__ import annotations

from enum import IntEnum, IntFlag

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES, runs_kernels

# The order of floats is trusted only where they lie further apart than both sides' errors.
# Logarithms: where a draw is won, a score is at most 26 below the largest, which is rounded to 1e-6. The logarithm of
# the exponential variate is off by 6e-6 (2**-22 of at most 23) and by 4e-6 of the variate's own error. Two of these are
# compared: at most 2.2e-5.
RACE_BAND = 2.0**-13
# The limit of min-p is a depth of at most 70, where a float32 is rounded to 4e-6, and the host's exponential is off by
# 2e-7 of it.
DEPTH_BAND = 2.0**-16
# A log-probability may be off by half of this, by what the filters keep or not.
LOGPROB_BAND = 2.0**-15

_LOWEST = torch.finfo(torch.float32).min
_MASK = 0xFFFFFFFF


def mass_band(vocab_size: int) -> float:
    """How near to the limit of top-p a share of the probability may be before rounding decides.

    A kernel's sums over 2**16 tokens are 16 additions in each of 4096 lanes and 12 of a tree: at most 1.7e-6 off. The
    share is a quotient of two, in which most of the weights' own errors cancel: at most 3.6e-6. Further tokens are
    further additions.
    """
    return 2.0**-18 * max(1.0, vocab_size / 2**16)


class SettingsWord(IntEnum):
    """Where a row's settings stand among its int32 words; floats are kept as their bits.

    Attributes:
        FLAGS: :class:`SettingsFlag`.
        KEY: the two words of the noise's key.
        TEMPERATURE: divides the scores; 1 without sampling.
        PENALTY: the repetition penalty; 1 for none.
        TOP_K: how many largest are kept; 0 for all.
        TOP_P: the mass that the kept reach; 1 for all.
        DEPTH: how far below the largest a score may be: ``-log(min_p)``, infinity for all.
        BANNED: as many ids as there are words left that are not chosen; -1 for none.
    """

    FLAGS = 0
    KEY = 1
    TEMPERATURE = 3
    PENALTY = 4
    TOP_K = 5
    TOP_P = 6
    DEPTH = 7
    BANNED = 8


SETTINGS_WORDS = 16
NUM_BANNED = SETTINGS_WORDS - SettingsWord.BANNED


class SettingsFlag(IntFlag):
    """What a row wants: nothing, if no flag is set."""

    WANTED = 1
    SAMPLED = 2
    LOGPROB = 4
    FOR_HOST = 8
    COUNTED = 16


class Undecided(IntFlag):
    """Why a row was not decided on the device: it is left to the host, rounding might decide, or there is no number."""

    FOR_HOST = 1
    AMBIGUOUS = 2
    NOT_FINITE = 4


def sample(
    logits: Tensor, settings: Tensor, seen: Tensor, last_ids: Tensor, *, vocab_size: int, banned: Tensor | None = None
) -> Tensor:
    """Chooses a token for every row, each with its own settings and its own noise.

    Semantics, of one row that wants a token::

        scores = logits[:vocab_size].float()
        scores = where(seen, where(scores < 0, scores * penalty, scores / penalty), scores)
        scores[counted] -= amounts                                        instead, with ``SettingsFlag.COUNTED``
        scores[banned] = -inf
        scores = scores / temperature
        token = argmax(scores)                                            without sampling
        kept = min_p(top_p(top_k(scores)))                                with it, as in ruprompt_fast.sampling.filters
        token = kept[argmax(scores[kept] + gumbel(key)[kept])]            the noise of ruprompt_fast.sampling.noise
        logprob = log_softmax(scores[kept])[token]

    A row is not decided, and says so, where it is the host's (``SettingsFlag.FOR_HOST``), where the largest score is
    not finite, and where a limit or the two best of the draw lie so near to each other that rounding decides.

    Nothing here waits for the device or depends on a value in a tensor, so the call can be captured.

    Args:
        logits: ``[rows, at least vocab_size]``, float32, float16 or bfloat16, the last dimension contiguous; later
            columns are not used.
        settings: int32 ``[rows, SETTINGS_WORDS]``, see :class:`SettingsWord`; a row of zeros wants nothing.
        seen: int32 ``[rows, ceil(vocab_size / 32)]``. With a repetition penalty, bit ``id % 32`` of word ``id // 32``
            says that the row has the token. With ``COUNTED``: n, the amount of a last id that is not among the counted,
            then n ids, the n amounts of those that are not the last id, and the n amounts of each if it is; amounts
            are float32 bits. Not used in other rows.
        last_ids: int32 or int64 ``[rows]``; one more token that the row has. Ids beyond the vocabulary are none.
        vocab_size: columns of the logits that are tokens.
        banned: bool ``[at least vocab_size]``; tokens that no row may choose, whatever its settings.

    Returns:
        int32 ``[rows, 4]``: the token (0 where there is none), :class:`Undecided` (0 where it is decided), the bits of
        the float32 log-probability in nats (0 unless wanted), 0.

    Raises:
        TensorArgumentError: a shape, dtype or device that is not as above.
    """
    if not runs_kernels(logits):
        return sample_reference(logits, settings, seen, last_ids, vocab_size=vocab_size, banned=banned)
    from ruprompt_fast.ops.cuda.sample import sample_cuda

    _check(logits, settings, seen, last_ids, vocab_size, banned)
    bands = (mass_band(vocab_size), RACE_BAND, DEPTH_BAND, LOGPROB_BAND)
    return sample_cuda(logits, settings, seen, last_ids, vocab_size, banned, bands)


def sample_reference(
    logits: Tensor, settings: Tensor, seen: Tensor, last_ids: Tensor, *, vocab_size: int, banned: Tensor | None = None
) -> Tensor:
    """:func:`sample` in plain PyTorch: all rows are sorted, masses and the draw are computed in float64."""
    _check(logits, settings, seen, last_ids, vocab_size, banned)
    flags = settings[:, SettingsWord.FLAGS]
    sampled, with_logprob = ((flags & flag != 0) for flag in (SettingsFlag.SAMPLED, SettingsFlag.LOGPROB))
    scores = _processed(logits, settings, seen, last_ids, vocab_size, banned)
    largest, best = scores.max(dim=-1).values, scores.argmax(dim=-1)
    depths = largest[:, None] - scores
    depths, certain, possible = _kept(scores, depths, settings)
    drawn, is_near = _drawn(scores, depths, certain, possible, settings)
    token = torch.where(sampled, drawn, best)
    logprob, is_wide = _logprob(depths, certain, possible, token)
    undecided = torch.where(sampled & is_near | with_logprob & is_wide, int(Undecided.AMBIGUOUS), 0)
    undecided = torch.where(largest.isfinite(), undecided, int(Undecided.NOT_FINITE))
    undecided = torch.where(flags & SettingsFlag.FOR_HOST != 0, int(Undecided.FOR_HOST), undecided)
    has_token = undecided & ~Undecided.AMBIGUOUS == 0
    bits = torch.where(with_logprob & has_token, logprob.float(), 0.0).view(torch.int32)
    result = torch.stack((torch.where(has_token, token, 0).int(), undecided.int(), bits, torch.zeros_like(bits)), dim=1)
    return result * (flags & SettingsFlag.WANTED != 0)[:, None]


def _floats(settings: Tensor, word: SettingsWord) -> Tensor:
    """A setting of every row, float32 [rows, 1]."""
    return settings[:, word : word + 1].contiguous().view(torch.float32)


def _processed(
    logits: Tensor, settings: Tensor, seen: Tensor, last_ids: Tensor, vocab_size: int, banned: Tensor | None
) -> Tensor:
    """The scores that tokens are chosen by, float32 [rows, vocab_size]."""
    scores = logits[:, :vocab_size].float()
    ids = torch.arange(vocab_size, device=logits.device)
    penalty = _floats(settings, SettingsWord.PENALTY)
    is_seen = (seen[:, ids // 32] >> (ids % 32)) & 1 != 0
    is_seen = (is_seen | (ids == last_ids[:, None])) & (penalty != 1.0)
    scores = torch.where(is_seen, torch.where(scores < 0, scores * penalty, scores / penalty), scores)
    scores = scores - _amounts(settings, seen, last_ids, vocab_size)
    more = settings[:, SettingsWord.BANNED :].long()
    places = torch.where((more < 0) | (more >= vocab_size), vocab_size, more)
    is_banned = torch.zeros(len(scores), vocab_size + 1, dtype=torch.bool, device=logits.device)
    is_banned = is_banned.scatter(1, places, True)[:, :vocab_size]
    if banned is not None:
        is_banned = is_banned | banned[:vocab_size]
    return scores.masked_fill(is_banned, -torch.inf) / _floats(settings, SettingsWord.TEMPERATURE)


def _amounts(settings: Tensor, seen: Tensor, last_ids: Tensor, vocab_size: int) -> Tensor:
    """What the scores of counted tokens lose, float32 [rows, vocab_size]."""
    rows, width = seen.shape
    amounts = torch.zeros(rows, vocab_size + 1, device=seen.device)
    if width < 2:
        return amounts[:, :vocab_size]
    is_counted = settings[:, SettingsWord.FLAGS, None] & SettingsFlag.COUNTED != 0
    size = torch.where(is_counted, seen[:, :1], 0).long()
    places = torch.arange((width - 2) // 3, device=seen.device)
    ids, once, again = (seen.gather(1, (2 + part * size + places).clamp(max=width - 1)) for part in range(3))
    # One more column takes what is of no token.
    ids = torch.where(places < size, ids, vocab_size).long()
    last = torch.where(last_ids < vocab_size, last_ids, vocab_size).long()[:, None]
    first = torch.where(is_counted, seen[:, 1:2], 0).view(torch.float32)
    amounts = amounts.scatter(1, last, first)
    return amounts.scatter(1, ids, torch.where(ids == last, again, once).view(torch.float32))[:, :vocab_size]


def _kept(scores: Tensor, depths: Tensor, settings: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The depths of what top-k keeps; which tokens all filters keep, and which they may if masses round otherwise."""
    vocab_size = scores.shape[1]
    top_k = settings[:, SettingsWord.TOP_K, None].long()
    places = torch.where(top_k > 0, top_k, vocab_size).clamp(1, vocab_size) - 1
    least = scores.sort(dim=-1, descending=True).values.gather(1, places)
    depths = torch.where(scores >= least.clamp(min=_LOWEST), depths, torch.inf)
    sorted_depths, order = depths.sort(dim=-1, stable=True)
    weights = (-sorted_depths.double()).exp()
    reached = weights.cumsum(dim=-1)
    before, total = reached - weights, reached[:, -1:]
    top_p = _floats(settings, SettingsWord.TOP_P).double()
    band = mass_band(vocab_size)
    within = torch.stack((before < (top_p - band) * total, before < (top_p + band) * total))
    within[:, :, 0].fill_(True)  # an assignment makes a tensor on the host first, which a graph cannot replay
    within = within | (top_p >= 1.0)
    certain, possible = torch.zeros_like(within).scatter(2, order.expand_as(within), within) & depths.isfinite()
    limit = _floats(settings, SettingsWord.DEPTH)
    return (
        depths,
        certain & ((depths <= limit - DEPTH_BAND) | (depths == 0)),
        possible & (depths <= limit + DEPTH_BAND),
    )


def _drawn(
    scores: Tensor, depths: Tensor, certain: Tensor, possible: Tensor, settings: Tensor
) -> tuple[Tensor, Tensor]:
    """Who wins the draw among all that may be kept, and whether another might: the winner may be left out, or is near.

    A winner that is certainly kept also wins among any others that are kept. Where several scores are rounded to one
    depth and not all are kept, the host's order of them depends on how many tokens it sorts.
    """
    finish = torch.where(possible, _log_exponential(depths.shape[1], settings) + depths, torch.inf)
    winner = finish.argmin(dim=-1, keepdim=True)
    second = finish.scatter(1, winner, torch.inf).min(dim=-1, keepdim=True).values
    is_near = ~(second - finish.gather(1, winner) > RACE_BAND) | ~certain.gather(1, winner)
    rivals = (depths == depths.gather(1, winner)) & (scores != scores.gather(1, winner))
    is_near = is_near[:, 0] | (rivals & ~certain).any(dim=-1)
    return winner[:, 0], is_near


def _log_exponential(vocab_size: int, settings: Tensor) -> Tensor:
    """The negative of :func:`ruprompt_fast.sampling.noise.gumbel` of every row, float64 [rows, vocab_size]."""
    words = random_words_reference(settings[:, SettingsWord.KEY : SettingsWord.KEY + 2], vocab_size)
    return (-(-(words.double() + 0.5) * 2.0**-32).log1p()).log()


def random_words_reference(keys: Tensor, vocab_size: int) -> Tensor:
    """The words of :func:`ruprompt_fast.sampling.noise.random_words`, for keys int32 [rows, 2]; int64."""
    words = torch.arange(vocab_size, device=keys.device)
    for key in (keys.long() & _MASK).unbind(1):
        words = _finalized(words ^ key[:, None])
    return words


def _finalized(words: Tensor) -> Tensor:
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        words = ((words ^ (words >> shift)) * factor) & _MASK
    return words ^ (words >> 16)


def _logprob(depths: Tensor, certain: Tensor, possible: Tensor, token: Tensor) -> tuple[Tensor, Tensor]:
    """The log-probability of a token among the kept, and whether it is not known well enough."""
    weights = (-depths.double()).exp()
    least, most = (torch.where(kept, weights, 0.0).sum(dim=-1) for kept in (certain, possible))
    logprob = -depths.gather(1, token[:, None])[:, 0] - ((least + most) / 2).log()
    return logprob, most - least > LOGPROB_BAND * most


def _check(
    logits: Tensor, settings: Tensor, seen: Tensor, last_ids: Tensor, vocab_size: int, banned: Tensor | None
) -> None:
    if logits.dim() != 2 or not 1 <= vocab_size <= logits.shape[1]:
        raise TensorArgumentError(f"logits must be [rows, at least {vocab_size}], not {list(logits.shape)}")
    if logits.dtype not in DTYPE_NAMES or logits.dtype is torch.float64:
        raise TensorArgumentError(f"logits must be float32, float16 or bfloat16, not {logits.dtype}")
    if logits.stride()[1] != 1 and logits.shape[1] > 1:
        raise TensorArgumentError(f"the last dimension of logits must be contiguous; the strides are {logits.stride()}")
    rows = len(logits)
    for name, tensor, width in (("settings", settings, SETTINGS_WORDS), ("seen", seen, -(-vocab_size // 32))):
        if tensor.shape != (rows, width) or tensor.dtype is not torch.int32 or (tensor.stride()[1] != 1 and width > 1):
            raise TensorArgumentError(
                f"{name} must be {[rows, width]}, int32, with contiguous rows, not {list(tensor.shape)} of "
                f"{tensor.dtype} with strides {tensor.stride()}"
            )
    if last_ids.shape != (rows,) or last_ids.dtype not in (torch.int32, torch.int64) or not last_ids.is_contiguous():
        raise TensorArgumentError(
            f"last_ids must be {[rows]}, int32 or int64 and contiguous, not {list(last_ids.shape)} of {last_ids.dtype}"
        )
    if banned is not None and (banned.dim() != 1 or len(banned) < vocab_size or banned.dtype is not torch.bool):
        raise TensorArgumentError(
            f"banned must be [at least {vocab_size}] of bool, not {list(banned.shape)} of {banned.dtype}"
        )
    others = [tensor for tensor in (settings, seen, last_ids, banned) if tensor is not None]
    if any(tensor.device != logits.device for tensor in others):
        raise TensorArgumentError(
            f"all tensors must be on the device of logits, {logits.device}, not on "
            f"{', '.join(str(tensor.device) for tensor in others)}"
        )
