"""Filters of candidates: top-k, top-p and their relatives, with the rules of transformers' logits warpers.

Every filter looks at one row and returns the indices that it keeps, in ascending order. Where equal scores lie on
both sides of a limit in sorted order (top-p, top-h), the lower ids stay. Sums run in float64 over the row alone, so
what is kept does not depend on the row's neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from ruprompt_fast.sampling.history import Scores

if TYPE_CHECKING:
    from ruprompt_fast.requests.sampling_params import SamplingParams

Indices: TypeAlias = npt.NDArray[np.intp]
Filter: TypeAlias = Callable[[Scores], Indices]

_LARGEST_GROUP = 64
_TOP_H_CANDIDATES = 100  # as many as transformers' TopHLogitsWarper reads
_HEAD = 128  # top-p looks for its limit among this many candidates first
_BUCKET_SHIFT = 18  # keeps sign, exponent and five bits of a float32
_LOWEST = float(np.finfo(np.float32).min)


def build_filters(params: SamplingParams) -> tuple[Filter, ...]:
    """The filters that a request's settings ask for, in transformers' order, as functions of the scaled scores."""
    filters: list[Filter] = []
    if params.top_h is not None:
        filters.append(partial(top_h, scale=params.top_h))
    if params.top_k > 0:
        filters.append(partial(top_k, count=params.top_k))
    if params.top_p < 1.0:
        filters.append(partial(top_p, mass=params.top_p))
    if params.min_p > 0.0:
        filters.append(partial(min_p, share=params.min_p))
    if params.typical_p < 1.0:
        filters.append(partial(typical_p, mass=params.typical_p))
    if 0.0 < params.epsilon_cutoff < 1.0:
        filters.append(partial(epsilon_cutoff, epsilon=params.epsilon_cutoff))
    if 0.0 < params.eta_cutoff < 1.0:
        filters.append(partial(eta_cutoff, epsilon=params.eta_cutoff))
    return tuple(filters)


def top_k(scores: Scores, count: int) -> Indices:
    """The ``count`` largest and all that equal the last of them, but never minus infinity."""
    floor = _LOWEST
    group = min(_LARGEST_GROUP, len(scores) // (4 * count))
    if group > 1:
        # The count-th largest of the groups' maxima is a lower bound: `count` groups have an element at least as large.
        grouped = len(scores) // group * group
        maxima = scores[:grouped].reshape(group, -1).max(axis=0)
        floor = max(floor, float(np.partition(maxima, -count)[-count]))
    kept = np.flatnonzero(scores >= np.float32(floor))
    if len(kept) <= count:
        return kept
    values = scores[kept]
    least = np.partition(values, -count)[-count]
    return np.asarray(kept[values >= least])


def descending(scores: Scores) -> Indices:
    """Indices from the largest to the smallest score; equal scores in the order of their indices."""
    return np.argsort(-scores, kind="stable")


def _depths(scores: Scores) -> Scores:
    """How far each score is below the largest, float32 and not negative."""
    depths: Scores = scores.max() - scores
    return depths


def top_p(scores: Scores, mass: float) -> Indices:
    """The fewest largest whose probabilities reach ``mass`` (Holtzman et al. 2020); at least one."""
    depths = _depths(scores)
    weights = np.exp(-depths)
    limit = mass * float(weights.sum(dtype=np.float64))
    if len(scores) <= 2 * _HEAD:
        return np.sort(_first(depths, weights, 0.0, limit))
    head = top_k(scores, _HEAD)
    kept = head[_first(depths[head], weights[head], 0.0, limit)]
    return np.sort(kept) if len(kept) < len(head) else _smallest(depths, weights, limit)


def _first(keys: Scores, weights: npt.NDArray[np.floating], before: float, limit: float) -> Indices:
    """Indices in ascending order of keys, while the weights before them sum to less than ``limit``; at least one."""
    order = np.argsort(keys, kind="stable")
    reached = before + np.cumsum(weights[order], dtype=np.float64)
    return order[: 1 + int(np.searchsorted(reached, limit, side="left"))]


def _smallest(keys: Scores, weights: npt.NDArray[np.floating], limit: float) -> Indices:
    """:func:`_first` in ascending order, for many keys: only those with the leading bits of the last are sorted.

    Args:
        keys: float32, not negative, so that their bits have their order.
        weights: the weight of each, in any floating dtype.
        limit: see :func:`_first`.
    """
    buckets = keys.view(np.uint32) >> np.uint32(_BUCKET_SHIFT)
    lowest = buckets.min()
    sums = np.bincount((buckets - lowest).astype(np.intp), weights=weights)
    reached = np.cumsum(sums)
    place = min(int(np.searchsorted(reached, limit, side="left")), len(sums) - 1)
    border = lowest + np.uint32(place)
    among = np.flatnonzero(buckets == border)
    before = float(reached[place - 1]) if place else 0.0
    kept = buckets < border
    kept[among[_first(keys[among], weights[among], before, limit)]] = True
    return np.flatnonzero(kept)


def min_p(scores: Scores, share: float) -> Indices:
    """Those at least ``share`` times as probable as the most probable one."""
    return np.flatnonzero(np.exp(-_depths(scores)) >= np.float32(share))


def _log_probs(scores: Scores) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], float]:
    """Log-probabilities, probabilities and the entropy in nats."""
    shifted = scores.astype(np.float64) - float(scores.max())
    log_probs = shifted - math.log(float(np.exp(shifted).sum()))
    probs = np.exp(log_probs)
    terms = np.multiply(probs, log_probs, where=probs > 0.0, out=np.zeros_like(probs))
    return log_probs, probs, -float(terms.sum())


def typical_p(scores: Scores, mass: float) -> Indices:
    """Those whose surprise is nearest to the entropy until they reach ``mass`` (Meister et al. 2023)."""
    log_probs, probs, entropy = _log_probs(scores)
    distances = np.abs(-log_probs - entropy).astype(np.float32)
    kept = _smallest(distances, probs, mass)
    return np.flatnonzero(distances <= distances[kept].max())


def epsilon_cutoff(scores: Scores, epsilon: float) -> Indices:
    """Those with at least probability ``epsilon``, and the most probable (Hewitt et al. 2022)."""
    _, probs, _ = _log_probs(scores)
    return np.flatnonzero((probs >= epsilon) | (scores >= scores.max()))


def eta_cutoff(scores: Scores, epsilon: float) -> Indices:
    """Epsilon cut-off with a limit that falls with the entropy (Hewitt et al. 2022)."""
    _, probs, entropy = _log_probs(scores)
    limit = min(epsilon, math.sqrt(epsilon) * math.exp(-entropy))
    return np.flatnonzero((probs >= limit) | (scores >= scores.max()))


def top_h(scores: Scores, scale: float) -> Indices:
    """The largest until their share of the entropy of the first hundred reaches ``scale`` (arXiv:2509.02510)."""
    candidates = top_k(scores, _TOP_H_CANDIDATES)
    order = candidates[descending(scores[candidates])][:_TOP_H_CANDIDATES]
    log_probs, probs, entropy = _log_probs(scores[order])
    reached = np.cumsum(-probs * log_probs)
    return np.sort(order[: max(1, int(np.searchsorted(reached, scale * entropy, side="right")))])
