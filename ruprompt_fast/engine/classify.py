"""Classification by the log-probability of label words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from ruprompt_fast.core import ClassificationOutput
from ruprompt_fast.engine.requests import Request
from ruprompt_fast.errors import LabelError
from ruprompt_fast.routing import check_fits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


# Requests scored at a time: the logits of one take 0.2 MB at a vocabulary of 50,000.
_CHUNK = 256


class Scorer(Protocol):
    """Something that runs requests for their logits."""

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """[requests, len(continuation) + 1, vocabulary]: logits behind each request and each token behind it."""
        ...


def encode_labels(labels: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """Token ids of each label, without special tokens.

    Raises:
        LabelError: fewer than two labels, an empty one, or two that read the same.
    """
    if isinstance(labels, str) or len(labels) < 2 or not all(isinstance(label, str) for label in labels):
        raise LabelError(f"classification needs a list of at least two labels; found {labels!r}.")
    ids: list[list[int]] = [tokenizer(label, add_special_tokens=False)["input_ids"] for label in labels]
    if not all(ids):
        raise LabelError(f"every label must have at least one token; found {list(labels)!r}.")
    if len(set(map(tuple, ids))) < len(ids):
        raise LabelError(f"labels must differ in their tokens; found {list(labels)!r}.")
    return ids


def classify(
    requests: Sequence[Request],
    labels: Sequence[str],
    runner: Scorer,
    tokenizer: PreTrainedTokenizerBase,
    config: PretrainedConfig,
) -> list[ClassificationOutput]:
    """The most probable label behind each request.

    A label's score is the sum of its tokens' log-probabilities (Lester et al. 2021 generate label words in the same
    way); the probabilities are the softmax of the scores over the labels. Labels of one token cost one forward pass.

    Raises:
        LabelError: the labels cannot be told apart.
        ContextLengthError: a request and its longest label do not fit the model's context.
    """
    label_ids = encode_labels(labels, tokenizer)
    for index, request in enumerate(requests):
        check_fits(config, len(request.input_ids), max(map(len, label_ids)) - 1, index)
    chunks = [requests[start : start + _CHUNK] for start in range(0, len(requests), _CHUNK)]
    scores = torch.cat([_scores(chunk, label_ids, runner) for chunk in chunks])
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
    for prefix in dict.fromkeys(tuple(ids[:-1]) for ids in label_ids):
        logprobs = runner.continuation_logits(requests, prefix).log_softmax(-1).cpu()
        for column, ids in enumerate(label_ids):
            if tuple(ids[:-1]) == prefix:
                scores[:, column] = logprobs[:, torch.arange(len(ids)), torch.tensor(ids)].sum(-1)
    return scores
