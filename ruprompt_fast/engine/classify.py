"""Classification by the log-probability of label words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from ruprompt_fast.core import ClassificationOutput
from ruprompt_fast.engine.requests import Request
from ruprompt_fast.engine.texts import check_encodable, check_ids
from ruprompt_fast.errors import LabelError, shown
from ruprompt_fast.routing import check_fits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


MAX_LABELS = 4096
MAX_LABEL_TOKENS = 256
MAX_LABEL_CHARS = 4096
"""How many labels there may be, and how long one: each costs a pass over its tokens behind every request."""

# Rows of logits computed at a time: one takes 0.2 MB at a vocabulary of 50,000.
_ROWS_AT_ONCE = 256


class Scorer(Protocol):
    """Something that runs requests for their logits."""

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """[requests, len(continuation) + 1, vocabulary]: logits behind each request and each token behind it."""
        ...


def encode_labels(labels: Any, tokenizer: PreTrainedTokenizerBase, table_size: int) -> list[list[int]]:
    """Token ids of each label, without special tokens.

    Args:
        labels: the labels, a list or another sequence.
        tokenizer: the model's.
        table_size: rows of the model's table of tokens.

    Raises:
        LabelError: no sequence of strings, fewer than two labels or too many, one that is empty, too long or no text,
            or two that read the same.
        TokenIdError: a label holds a token that the model has no row for.
    """
    if isinstance(labels, (str, bytes)) or not isinstance(labels, Sequence) or not 2 <= len(labels) <= MAX_LABELS:
        raise LabelError(
            f"classification needs a list of at least two labels and at most {MAX_LABELS}; found {shown(labels)}."
        )
    for index, label in enumerate(labels):
        if not isinstance(label, str):
            raise LabelError(f"label {index} must be a string; found {shown(label)}.")
        if len(label) > MAX_LABEL_CHARS:
            raise LabelError(f"label {index} may have {MAX_LABEL_CHARS} characters; found {len(label)}.")
        check_encodable(label, f"label {index}", LabelError)
    ids: list[list[int]] = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    for index, tokens in enumerate(ids):
        if not 1 <= len(tokens) <= MAX_LABEL_TOKENS:
            raise LabelError(
                f"every label must have at least one token and at most {MAX_LABEL_TOKENS}; label {index}, "
                f"{shown(labels[index])}, has {len(tokens)}."
            )
        check_ids(tokens, table_size, tokenizer, f"label {index}")
    if len(set(map(tuple, ids))) < len(ids):
        raise LabelError(f"labels must differ in their tokens; found {shown(list(labels))}.")
    return ids


def classify(
    requests: Sequence[Request],
    labels: Sequence[str],
    label_ids: Sequence[list[int]],
    runner: Scorer,
    config: PretrainedConfig,
) -> list[ClassificationOutput]:
    """The most probable label behind each request.

    A label's score is the sum of its tokens' log-probabilities (Lester et al. 2021 generate label words in the same
    way); the probabilities are the softmax of the scores over the labels. Labels of one token cost one forward pass.

    Args:
        requests: the requests.
        labels: the labels.
        label_ids: their token ids, of :func:`encode_labels`.
        runner: computes logits.
        config: the model's config.

    Raises:
        ContextLengthError: a request and its longest label do not fit the model's context.
    """
    for index, request in enumerate(requests):
        check_fits(config, len(request.input_ids), max(map(len, label_ids)) - 1, index)
    scores = _scores(requests, label_ids, runner)
    return [
        ClassificationOutput(
            labels[int(row.argmax())],
            dict(zip(labels, row.tolist(), strict=True)),
            request.prompt_name,
        )
        for request, row in zip(requests, scores.softmax(-1), strict=True)
    ]


def _scores(requests: Sequence[Request], label_ids: Sequence[list[int]], runner: Scorer) -> Tensor:
    """The log-probability of every label behind every request, [requests, labels]."""
    scores = torch.zeros((len(requests), len(label_ids)))
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for column, ids in enumerate(label_ids):
        by_prefix.setdefault(tuple(ids[:-1]), []).append(column)
    for prefix, columns in by_prefix.items():
        size = max(1, _ROWS_AT_ONCE // (len(prefix) + 1))
        for start in range(0, len(requests), size):
            rows = slice(start, min(start + size, len(requests)))
            logprobs = runner.continuation_logits(requests[rows], prefix).log_softmax(-1).cpu()
            for column in columns:
                tokens = torch.tensor(label_ids[column])
                scores[rows, column] = logprobs[:, torch.arange(len(tokens)), tokens].sum(-1)
    return scores
