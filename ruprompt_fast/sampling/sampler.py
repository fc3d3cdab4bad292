"""Chooses the next token of every sequence in a step, each with its own settings and its own noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.errors import NonFiniteLogitsError
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.history import History, Scores, TokenIds, token_array
from ruprompt_fast.sampling.noise import noise_key, sample_index
from ruprompt_fast.sampling.sampling_rows import Chosen, SampledToken, SamplingRow

COLD = 1e-3
"""A score divided by a lower temperature may overflow float32, so scores are shifted first."""
_BF16_INFINITY, _BF16_MINUS_INFINITY = 0x7F80, 0xFF80


class Sampler:
    """Turns logits into token ids.

    Every row is computed by itself: its result does not depend on the other rows, their number or their order.

    Args:
        vocab_size: columns of the logits that are tokens; later columns are never read.
        banned_ids: ids below ``vocab_size`` that are never generated, such as ids that the tokenizer does not have.
    """

    def __init__(self, vocab_size: int, banned_ids: Sequence[int] = ()) -> None:
        self._vocab_size = vocab_size
        self._banned = frozenset(banned_ids)
        self._banned_ids = token_array(sorted(self._banned))

    def sample(self, logits: Tensor, rows: Sequence[SamplingRow | None]) -> list[Chosen | None]:
        """Choose a token for every row, or several where a row asks for several samples.

        Args:
            logits: [rows, at least vocab_size], any floating dtype; read as float32 and left unchanged.
            rows: one for each row of the logits; None where no token is to be chosen.

        Returns:
            For every row its tokens, or an error where the row has NaN, plus infinity, or no token left. Other rows are
            not affected.
        """
        table = logits.detach()[:, : self._vocab_size].cpu()
        return [None if row is None else self._chosen(table[index], row) for index, row in enumerate(rows)]

    def _chosen(self, logits: Tensor, row: SamplingRow) -> Chosen:
        try:
            return self._choose(logits, row)
        except Exception as error:  # whatever a processor of its own makes of these numbers
            return error

    def _choose(self, logits: Tensor, row: SamplingRow) -> Chosen:
        if row.is_plain_greedy:
            token = largest(logits)
            if token is not None and token not in self._banned:
                return SampledToken([token] * row.num_samples)
        return self._choose_among(self._processed(logits, row), row)

    def _choose_among(self, scores: Scores, row: SamplingRow) -> Chosen:
        params = row.params
        if params.do_sample and params.temperature != 1.0:
            _scale(scores, params)
        best = int(scores.argmax())
        if not math.isfinite(scores[best]):
            return _non_finite(float(scores[best]))
        if not params.do_sample:
            return self._result(scores, [best] * row.num_samples, None, params)
        ids: TokenIds | None = None
        for keep in row.filters:
            kept = keep(scores)
            scores, ids = scores[kept], kept if ids is None else ids[kept]
        step = len(row.new_ids)
        drawn = [
            sample_index(scores, noise_key(params.seed, row.stream + sample, step), ids)
            for sample in range(row.num_samples)
        ]
        return self._result(scores, drawn, ids, params)

    def _processed(self, logits: Tensor, row: SamplingRow) -> Scores:
        scores: Scores = logits.to(torch.float32, copy=True).numpy()
        if row.processors:
            history = History(row.input_array, row.new_ids)
            for process in row.processors:
                process(scores, history)
        scores[self._banned_ids] = -np.inf
        return scores

    @staticmethod
    def _result(scores: Scores, drawn: list[int], ids: TokenIds | None, params: SamplingParams) -> SampledToken:
        tokens = drawn if ids is None else ids[drawn].tolist()
        return SampledToken(tokens, token_logprobs(scores, drawn) if params.logprobs else None)


@dataclass(frozen=True, slots=True)
class SampledOnHost:
    """A launched step whose tokens are chosen here once they are asked for.

    Attributes:
        logits: [num_logits, at least vocab_size].
        rows: what is wanted for each of them.
        sampler: chooses.
        runs_ahead: never: the next step needs the tokens.
        overruled: none.
    """

    logits: Tensor
    rows: Sequence[SamplingRow | None]
    sampler: Sampler
    runs_ahead: bool = False
    overruled: Sequence[int] = ()

    def chosen(self) -> list[Chosen | None]:
        """The tokens of every row; see :meth:`Sampler.sample`."""
        return self.sampler.sample(self.logits, self.rows)


def largest(logits: Tensor) -> int | None:
    """The index of the largest of one row of logits [vocabulary]; None unless it is finite and no logit is NaN.

    Bfloat16 is compared as integers, which order positive numbers as floats do: converting the rows of a batch of 32
    took as long as all their LayerNorms.
    """
    if logits.dtype is torch.bfloat16:
        bits = logits.view(torch.int16).numpy()
        index = int(bits.argmax())
        # As integers, infinity and positive NaN are the largest; as unsigned ones, negative NaN is.
        if 0 < bits[index] < _BF16_INFINITY and bits.view(np.uint16).max() <= _BF16_MINUS_INFINITY:
            return index
    values = logits.float().numpy()
    index = int(values.argmax())  # a NaN counts as the largest
    return index if math.isfinite(values[index]) else None


def _scale(scores: Scores, params: SamplingParams) -> None:
    """Divide by the temperature, in place."""
    with np.errstate(over="ignore", invalid="ignore"):
        # The smallest finite scores must not become minus infinity, nor the largest score infinity.
        if params.remove_invalid_values or (params.temperature < COLD and np.isfinite(scores.max())):
            scores -= scores.max()
        scores /= np.float32(params.temperature)


def token_logprobs(scores: Scores, indices: Sequence[int]) -> list[float]:
    """Log-softmax of one row of scores at the indices, in nats."""
    largest = float(scores.max())
    total = largest + math.log(float(np.exp(scores - np.float32(largest)).sum(dtype=np.float64)))
    return [float(scores[index]) - total for index in indices]


def _non_finite(value: float) -> NonFiniteLogitsError:
    found = "NaN" if math.isnan(value) else "plus infinity" if value > 0 else "no token that is not ruled out"
    return NonFiniteLogitsError(
        f"the logits of a sequence must have a finite largest score; found {found}. Check the model's weights and the "
        "request's banned and forced tokens, or set remove_invalid_values=True."
    )
