"""Beam search over one request, with the rules of transformers' ``GenerationMixin._beam_search``."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ruprompt_fast.errors import NonFiniteLogitsError, SettingError
from ruprompt_fast.requests.sampling_params import FinishReason, SamplingParams, finish_reason
from ruprompt_fast.sampling.filters import descending, top_k
from ruprompt_fast.sampling.history import History, Scores, TokenIds, token_array
from ruprompt_fast.sampling.processors import build_processors
from ruprompt_fast.sampling.sampler import token_logprobs

# transformers uses this instead of minus infinity: scores lowered by it still have an order.
_FAR_BELOW = np.float32(-1.0e9)
_NOTHING = np.float32(0.0)


@dataclass(slots=True)
class BeamStep:
    """How the beams continue: the new beam i is the old beam ``parents[i]`` with ``token_ids[i]``.

    Both lists have ``num_beams`` entries; at the first step all parents are 0.
    """

    parents: list[int]
    token_ids: list[int]


@dataclass(slots=True)
class BeamResult:
    """One finished sequence.

    Attributes:
        token_ids: the new tokens.
        score: sum of the processed log-probabilities over ``length ** length_penalty``.
        logprobs: log-softmax of the processed scores at each token, in nats, if the request asked for them.
        finish_reason: "stop" for an end of text or a stop string, "length", or "time".
    """

    token_ids: list[int]
    score: float
    logprobs: list[float] | None
    finish_reason: FinishReason


@dataclass(slots=True)
class _Sequence:
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    reason: FinishReason = "length"


class BeamSearch:
    """The state of one request's beams.

    Args:
        params: the request's settings, without sampling.
        input_ids: ids of the input; ids beyond the vocabulary are virtual tokens.
        vocab_size: columns of the logits that are tokens.
        banned_ids: ids below ``vocab_size`` that are never generated. They count in the softmax all the same.
        stops: whether the text of new token ids contains one of ``params.stop_strings``; required with these.

    Raises:
        SettingError: the settings ask for sampling, or have stop strings and ``stops`` is missing.
    """

    def __init__(
        self,
        params: SamplingParams,
        input_ids: Sequence[int] | TokenIds,
        vocab_size: int,
        banned_ids: Sequence[int] = (),
        stops: Callable[[Sequence[int]], bool] | None = None,
    ) -> None:
        if params.do_sample:
            raise SettingError("beam search needs do_sample=False; sampled beams run on transformers' own generate.")
        if params.stop_strings and stops is None:
            raise SettingError("beam search with stop_strings needs a function that tells when a text contains one.")
        self._params = params
        self._processors = build_processors(params)
        self._input_ids = token_array(input_ids)
        self._vocab_size = vocab_size
        self._banned_ids = token_array(sorted(banned_ids))
        self._stops = stops if params.stop_strings else None
        count = params.num_beams
        self._num_kept = max(2, 1 + len(params.eos_token_ids)) * count
        self._running = [_Sequence() for _ in range(count)]
        self._finished = [_Sequence() for _ in range(count)]
        # All beams start as one sequence: only the first may be continued, or all would stay the same.
        self._running_scores = np.full(count, _FAR_BELOW)
        self._running_scores[0] = 0.0
        self._finished_scores = np.full(count, _FAR_BELOW)
        self._is_finished = np.zeros(count, dtype=np.bool_)
        self._can_improve = True
        self._over = False
        self._length = 0

    @property
    def finished(self) -> bool:
        """Whether further steps cannot change the results."""
        return self._over

    @property
    def new_ids(self) -> list[list[int]]:
        """The new tokens of every running beam."""
        return [sequence.token_ids for sequence in self._running]

    def advance(self, logits: Tensor, *, out_of_time: bool = False) -> BeamStep:
        """Take one step of all beams.

        Args:
            logits: [1, at least vocab_size] at the first call, [num_beams, at least vocab_size] later.
            out_of_time: end every sequence with this step.

        Raises:
            NonFiniteLogitsError: the logits have NaN or plus infinity, or no token is left for any beam.
        """
        table = self._processed(logits)
        scores = table + self._running_scores[:, None]
        self._check(float(scores.max()))
        flat = scores.reshape(-1)
        best = top_k(flat, self._num_kept)
        best = best[descending(flat[best])][: self._num_kept]
        if len(best) < self._num_kept:  # the others are ruled out
            rest = np.setdiff1d(np.arange(min(len(flat), 2 * self._num_kept)), best)
            best = np.concatenate((best, rest))[: self._num_kept]
        parents, tokens = np.divmod(best, self._vocab_size)
        candidates = [
            self._extended(int(parent), int(token), table)
            for parent, token in zip(parents.tolist(), tokens.tolist(), strict=True)
        ]
        ended = np.array([self._ends(candidate, out_of_time) for candidate in candidates])
        step = self._continue(candidates, flat[best], ended, parents)
        self._update_finished(candidates, flat[best], ended)
        self._length += 1
        self._can_improve = self._can_improve and self._improvement_is_possible()
        full = self._params.early_stopping is True and bool(self._is_finished.all())
        self._over = not self._can_improve or full or bool(ended.all())
        return step

    def results(self) -> list[BeamResult]:
        """The ``num_return_sequences`` best finished sequences, best first."""
        wanted = self._params.num_return_sequences
        with_logprobs = self._params.logprobs
        return [
            BeamResult(sequence.token_ids, float(score), sequence.logprobs if with_logprobs else None, sequence.reason)
            for sequence, score in zip(self._finished[:wanted], self._finished_scores[:wanted], strict=True)
        ]

    def _processed(self, logits: Tensor) -> Scores:
        """Log-probabilities after the processors, float32 [num_beams, vocab_size]."""
        log_probs = logits.detach()[:, : self._vocab_size].float().log_softmax(-1).cpu().numpy()
        for row, sequence in zip(log_probs, self._running, strict=False):
            history = History(self._input_ids, sequence.token_ids)
            for process in self._processors:
                process(row, history)
            row[self._banned_ids] = -np.inf
        if self._params.renormalize_logits:
            log_probs -= np.array([[_log_sum_exp(row)] for row in log_probs], dtype=np.float32)
        if len(log_probs) < len(self._running):
            return np.repeat(log_probs, len(self._running), axis=0)
        table: Scores = log_probs
        return table

    def _check(self, largest: float) -> None:
        if not math.isfinite(largest):
            raise NonFiniteLogitsError(
                f"the logits of {len(self._running)} beams must have a finite largest score; found {largest}. Check "
                "the model's weights and the request's banned and forced tokens, or set remove_invalid_values=True."
            )

    def _extended(self, parent: int, token: int, table: Scores) -> _Sequence:
        before = self._running[parent]
        logprobs = before.logprobs
        if self._params.logprobs:
            logprobs = [*logprobs, *token_logprobs(table[parent], [token])]
        return _Sequence([*before.token_ids, token], logprobs)

    def _ends(self, candidate: _Sequence, out_of_time: bool) -> bool:
        reason = finish_reason(self._params, candidate.token_ids)
        if reason != "stop" and self._stops is not None and self._stops(candidate.token_ids):
            reason = "stop"
        if reason is None and out_of_time:
            reason = "time"
        if reason is not None:
            candidate.reason = reason
        return reason is not None

    def _continue(
        self,
        candidates: list[_Sequence],
        scores: Scores,
        ended: npt.NDArray[np.bool_],
        parents: npt.NDArray[np.intp],
    ) -> BeamStep:
        """Keep the best candidates that have not ended."""
        open_scores = scores + np.where(ended, _FAR_BELOW, _NOTHING)
        chosen = descending(open_scores)[: len(self._running)].tolist()
        self._running = [candidates[index] for index in chosen]
        self._running_scores = open_scores[chosen]
        origins = [0] * len(chosen) if self._length == 0 else parents[chosen].tolist()
        return BeamStep(origins, [sequence.token_ids[-1] for sequence in self._running])

    def _update_finished(self, candidates: list[_Sequence], scores: Scores, ended: npt.NDArray[np.bool_]) -> None:
        """Merge candidates that have just ended into the finished ones, if they are among the best ``num_beams``."""
        count = len(self._finished)
        ended = ended & (np.arange(len(candidates)) < count)
        full = self._params.early_stopping is True and bool(self._is_finished.all())
        scores = self._scaled(scores, self._length + 1)
        if full:
            scores = scores + _FAR_BELOW
        if not self._can_improve:
            scores = scores + _FAR_BELOW
        scores = scores + np.where(ended, _NOTHING, _FAR_BELOW)
        merged = np.concatenate((self._finished_scores, scores))
        chosen = descending(merged)[:count].tolist()
        pool = [*self._finished, *candidates]
        self._finished = [pool[index] for index in chosen]
        self._finished_scores = merged[chosen]
        self._is_finished = np.concatenate((self._is_finished, ended))[chosen]

    def _scaled(self, scores: Scores, length: int) -> Scores:
        """Scores over the length to the power of ``length_penalty``.

        A negative power must not lower them to the number that means no score.
        """
        scaled = scores / np.float32(length**self._params.length_penalty)
        found: Scores = np.where(scores > _FAR_BELOW / 2, np.maximum(scaled, _FAR_BELOW / 2), scaled)
        return found

    def _improvement_is_possible(self) -> bool:
        """Whether the best running beam may still beat the worst finished one, by transformers' heuristics."""
        penalty = self._params.length_penalty
        longest = self._params.early_stopping == "never" and penalty > 0.0
        length = self._params.max_new_tokens if longest else self._length
        hope = self._scaled(self._running_scores[:1], length)
        worst = np.where(self._is_finished, self._finished_scores.min(), _FAR_BELOW)
        return bool((hope > worst).any())


def _log_sum_exp(row: Scores) -> float:
    largest = float(row.max())
    return largest + math.log(float(np.exp(row - np.float32(largest)).sum(dtype=np.float64)))
