"""Combines the answers of an ensemble's members into one answer for every input."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from itertools import groupby, islice

from ruprompt_fast.core import ClassificationOutput, GenerationOutput
from ruprompt_fast.requests.generation_task import GenerationTask
from ruprompt_fast.requests.inputs import Request


def most_probable(tasks: Sequence[GenerationTask], outputs: Sequence[GenerationOutput]) -> list[GenerationOutput]:
    """The outputs of every input; for an ensemble, those that the member which wrote them finds most probable.

    They are compared by mean log-probability per token, in nats, with the end-of-text token; of equals the first wins.

    Args:
        tasks: what was generated, see :meth:`CallReader.tasks`.
        outputs: ``num_return_sequences`` for every task, in order.

    Returns:
        ``num_return_sequences`` outputs for every input, in order; an ensemble's best comes first.
    """
    remaining = iter(outputs)
    chosen: list[GenerationOutput] = []
    for _, group in groupby(tasks, lambda task: task.request.index):
        first, *others = group
        size = first.resolved.num_return_sequences
        candidates = list(islice(remaining, size * (1 + len(others))))
        if first.request.ensemble is not None:
            candidates = sorted(candidates, key=_mean_logprob, reverse=True)[:size]
        chosen += candidates
    return chosen


def majority(requests: Sequence[Request], outputs: Sequence[ClassificationOutput]) -> list[ClassificationOutput]:
    """The classification of every input; for an ensemble, the label that most members choose.

    Where labels have equally many votes, the larger sum of the members' log-probabilities (among the labels, in nats)
    wins. An ensemble's probabilities are the mean of its members', so its label need not be the most probable one.

    Args:
        requests: what was classified.
        outputs: one for every request.
    """
    verdicts = []
    for _, group in groupby(zip(requests, outputs, strict=True), lambda answered: answered[0].index):
        (request, *_), votes = zip(*group, strict=True)
        verdicts.append(votes[0] if request.ensemble is None else _verdict(votes, request.ensemble))
    return verdicts


def _verdict(votes: Sequence[ClassificationOutput], ensemble: str) -> ClassificationOutput:
    counts = Counter(vote.label for vote in votes)
    columns = {label: [vote.probabilities[label] for vote in votes] for label in votes[0].probabilities}
    label = max(columns, key=lambda word: (counts[word], sum(map(_log, columns[word]))))
    return ClassificationOutput(label, {word: sum(column) / len(votes) for word, column in columns.items()}, ensemble)


def _log(probability: float) -> float:
    return math.log(probability) if probability > 0 else -math.inf


def _mean_logprob(output: GenerationOutput) -> float:
    logprobs = output.logprobs or [-math.inf]
    return sum(logprobs) / len(logprobs)
