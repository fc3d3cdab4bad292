"""Score processors: penalties, biases, banned and forced tokens, with the rules and the order of transformers.

A processor changes one row of scores in place. Virtual tokens in the history have ids beyond the vocabulary: they
never count as repeated, and an n-gram that holds one matches no n-gram of tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from ruprompt_fast.sampling.history import History, Scores, TokenIds, token_array, within

if TYPE_CHECKING:
    from ruprompt_fast.requests.sampling_params import SamplingParams

Processor: TypeAlias = Callable[[Scores, History], None]

_LARGEST_EXPONENT = 64.0  # e**64 times any score of a model fits float32
_LARGEST = np.finfo(np.float32).max
_KEPT = 16  # different settings in use at once; the biases of a whole vocabulary take megabytes


@lru_cache(maxsize=_KEPT)
def build_processors(params: SamplingParams) -> tuple[Processor, ...]:
    """The processors that a request's settings ask for, in the order in which they run; sequences share them.

    The order is that of ``GenerationMixin._get_logits_processor``; ``logit_bias`` runs together with
    ``sequence_bias``, the presence and frequency penalties run after ``repetition_penalty``.
    """
    return (*_penalties(params), *_bounds(params))


def _penalties(params: SamplingParams) -> list[Processor]:
    """Processors that depend on the tokens before."""
    found: list[Processor] = []
    if params.sequence_bias:
        found.append(partial(bias_sequences, sequences=Sequences(params.sequence_bias)))
    if params.logit_bias:
        singles = Sequences([((token,), bias) for token, bias in params.logit_bias])
        found.append(partial(bias_sequences, sequences=singles))
    if params.repetition_penalty != 1.0:
        found.append(partial(penalize_repetition, penalty=np.float32(params.repetition_penalty)))
    if params.presence_penalty or params.frequency_penalty:
        found.append(partial(penalize_counts, presence=params.presence_penalty, frequency=params.frequency_penalty))
    if params.no_repeat_ngram_size:
        found.append(partial(ban_repeated_ngrams, size=params.no_repeat_ngram_size))
    if params.bad_words_ids:
        found.append(partial(ban_sequences, sequences=Sequences([(ids, 0.0) for ids in params.bad_words_ids])))
    return found


def _bounds(params: SamplingParams) -> list[Processor]:
    """Processors that depend on the position, or on nothing."""
    found: list[Processor] = []
    eos = token_array(params.eos_token_ids)
    if params.min_new_tokens and len(eos):
        found.append(partial(ban_until, token_ids=eos, num_new=params.min_new_tokens))
    if params.forced_bos_token_id is not None:
        found.append(partial(force_start, token_id=params.forced_bos_token_id))
    if params.forced_eos_token_ids:
        forced = token_array(params.forced_eos_token_ids)
        found.append(partial(force_end, token_ids=forced, num_new=params.max_new_tokens))
    if params.remove_invalid_values:
        found.append(remove_invalid_values)
    if params.exponential_decay_length_penalty is not None:
        start, factor = params.exponential_decay_length_penalty
        found.append(partial(raise_ends, token_ids=eos, start=start, factor=factor))
    if params.suppress_tokens:
        found.append(partial(ban, token_ids=token_array(params.suppress_tokens)))
    if params.begin_suppress_tokens:
        banned = token_array(params.begin_suppress_tokens)
        found.append(partial(ban_at_start, token_ids=banned, is_forced=params.forced_bos_token_id is not None))
    return found


class Sequences:
    """Token sequences with a bias each, for the last token wherever the tokens before it match.

    Args:
        biases: pairs of token ids and bias.
    """

    def __init__(self, biases: Sequence[tuple[tuple[int, ...], float]]) -> None:
        self._always = {sequence[0]: bias for sequence, bias in biases if len(sequence) == 1}
        self._always_arrays = _arrays(self._always)
        self._after: dict[tuple[int, ...], list[tuple[int, float]]] = {}
        for sequence, bias in biases:
            if len(sequence) > 1:
                self._after.setdefault(sequence[:-1], []).append((sequence[-1], bias))
        self._lengths = sorted({len(prefix) for prefix in self._after})

    def sums(self, history: History) -> tuple[TokenIds, Scores]:
        """The tokens that have a bias now, each once, and the sum of its biases."""
        if not self._lengths:
            return self._always_arrays
        tail = history.tail(self._lengths[-1])
        found = [self._after.get(tail[-length:], []) for length in self._lengths if length <= len(tail)]
        if not any(found):
            return self._always_arrays
        totals = self._always.copy()
        for biases in found:
            for token, bias in biases:
                totals[token] = totals.get(token, 0.0) + bias
        return _arrays(totals)


def _arrays(totals: dict[int, float]) -> tuple[TokenIds, Scores]:
    biases = np.fromiter(totals.values(), dtype=np.float64, count=len(totals))
    with np.errstate(over="ignore"):  # less than the smallest float32 becomes minus infinity
        return np.fromiter(totals, dtype=np.int64, count=len(totals)), biases.astype(np.float32)


def bias_sequences(scores: Scores, history: History, sequences: Sequences) -> None:
    """Add a bias to the last token of each sequence that it would complete."""
    token_ids, biases = sequences.sums(history)
    scores[token_ids] += biases


def ban_sequences(scores: Scores, history: History, sequences: Sequences) -> None:
    """Ban the last token of each sequence that it would complete."""
    token_ids, _ = sequences.sums(history)
    scores[token_ids] = -np.inf


def penalize_repetition(scores: Scores, history: History, penalty: np.float32) -> None:
    """Divide positive and multiply negative scores of the tokens in input and output (Keskar et al. 2019)."""
    seen = within(history.ids, scores)
    found = scores[seen]
    scores[seen] = np.where(found < 0, found * penalty, found / penalty)


def penalize_counts(scores: Scores, history: History, presence: float, frequency: float) -> None:
    """Subtract ``presence`` once, and ``frequency`` for every time, from the scores of tokens in the output.

    The input does not count: these are the penalties of OpenAI's interface, as vLLM applies them.
    """
    tokens, counts = np.unique(token_array(history.new_ids), return_counts=True)
    scores[tokens] -= (presence + frequency * counts).astype(np.float32)


def ban_repeated_ngrams(scores: Scores, history: History, size: int) -> None:
    """Ban every token that would complete an n-gram of the input and output so far."""
    ids = history.ids
    windows = len(ids) - size + 1
    if windows < 1:
        return
    matches = np.ones(windows, dtype=np.bool_)
    for offset in range(size - 1):
        matches &= ids[offset : offset + windows] == ids[windows + offset]
    scores[within(ids[size - 1 :][matches], scores)] = -np.inf


def ban(scores: Scores, history: History, token_ids: TokenIds) -> None:
    """Ban tokens at every step."""
    scores[within(token_ids, scores)] = -np.inf


def ban_until(scores: Scores, history: History, token_ids: TokenIds, num_new: int) -> None:
    """Ban tokens until there are ``num_new`` new ones."""
    if history.num_new < num_new:
        ban(scores, history, token_ids)


def ban_at_start(scores: Scores, history: History, token_ids: TokenIds, is_forced: bool) -> None:
    """Ban tokens at the first step; at the second where :func:`force_start` decides the first."""
    if history.num_new == (1 if is_forced and history.num_input <= 1 else 0):
        ban(scores, history, token_ids)


def force_start(scores: Scores, history: History, token_id: int) -> None:
    """Leave one token where exactly one token comes before it."""
    if history.num_input + history.num_new == 1:
        scores.fill(-np.inf)
        scores[token_id] = 0.0


def force_end(scores: Scores, history: History, token_ids: TokenIds, num_new: int) -> None:
    """Leave only these tokens at the last of ``num_new`` steps."""
    if history.num_new == num_new - 1:
        scores.fill(-np.inf)
        scores[token_ids] = 0.0


def remove_invalid_values(scores: Scores, history: History) -> None:
    """Make NaN zero, and infinities the largest finite numbers."""
    np.nan_to_num(scores, copy=False, nan=0.0)


def raise_ends(scores: Scores, history: History, token_ids: TokenIds, start: int, factor: float) -> None:
    """Raise the scores of the end-of-text tokens exponentially after ``start`` new tokens."""
    excess = history.num_new - start
    if excess > 0:
        ends = within(token_ids, scores)
        ends = ends[np.isfinite(scores[ends])]
        growth = factor**excess if excess * math.log(factor) <= _LARGEST_EXPONENT else math.exp(_LARGEST_EXPONENT)
        with np.errstate(over="ignore"):  # a bias may be large, and remove_invalid_values leaves the largest numbers
            raised = scores[ends] + np.abs(scores[ends]) * np.float32(growth - 1)
        scores[ends] = np.minimum(raised, _LARGEST)
