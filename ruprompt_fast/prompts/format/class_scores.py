"""Scores of classes from those of their words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def class_scores(word_scores: Tensor, class_of: Sequence[int] | None) -> Tensor:
    """Log-probabilities of classes, from those of their words.

    Semantics::

        out[..., k] = logsumexp(word_scores[..., class_of == k], -1)

    Args:
        word_scores: [..., words], log-probabilities.
        class_of: for every word the index of its class, in order; None where each is a class of its own.
    """
    if class_of is None:
        return word_scores
    columns: list[list[int]] = [[] for _ in range(max(class_of) + 1)]
    for word, index in enumerate(class_of):
        columns[index].append(word)
    if len(columns) == len(class_of):
        return word_scores
    return torch.stack([word_scores[..., column].logsumexp(-1) for column in columns], -1)
