"""Losses from the logits at the tokens to generate, in float32."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor
from torch.nn import functional as F

from ruprompt_fast.ops import frozen_linear
from ruprompt_fast.ops.frozen_linear import check_frozen_weight
from ruprompt_fast.prompts.format.verbalizers import class_scores
from ruprompt_fast.training.examples import Example


@dataclass(frozen=True)
class BatchLoss:
    """The loss of a batch.

    Attributes:
        total: the summed loss in nats, a float32 scalar with its graph.
        num_items: what it is a sum over: generated tokens, or classified examples.
        num_correct: classification: how many examples have the right label first, a scalar; else None.
    """

    total: Tensor
    num_items: int
    num_correct: Tensor | None = None


class Choices(TypedDict):
    """Which generated tokens belong to which label word, for a batch of classified examples.

    A dictionary, so that its tensors move to a device with the batch's.

    Attributes:
        num_candidates: label words of every example.
        candidate_of: int64 [generated tokens], the index of each one's label word, counted through the batch.
        golds: int64 [examples], the index of each one's right class.
        class_of: for every label word of an example the index of its class; None where each is a class of its own.
    """

    num_candidates: int
    candidate_of: Tensor
    golds: Tensor
    class_of: tuple[int, ...] | None


def choices_of(examples: Sequence[Example]) -> Choices | None:
    """How the examples' label words share the generated tokens; None if they are no classification."""
    if not examples or not examples[0]["candidates"]:
        return None
    class_of = tuple(examples[0]["class_of"])
    words = [word for example in examples for word in example["candidates"]]
    return Choices(
        num_candidates=len(class_of),
        candidate_of=torch.tensor([index for index, word in enumerate(words) for _ in word]),
        golds=torch.tensor([example["gold"] for example in examples]),
        class_of=class_of,
    )


def batch_loss(logprobs: Tensor, choices: Choices | None) -> BatchLoss:
    """The loss of a batch.

    Semantics::

        total = -logprobs.sum()                                                    # without choices
        scores = zeros(...).index_add(0, candidate_of, logprobs).view(-1, num_candidates)
        scores = class_scores(scores, class_of)
        total = cross_entropy(scores, golds, reduction="sum")                      # with choices

    A label word's score is the sum of its tokens' log-probabilities and a class's the log of the sum of its words'
    probabilities, as when they are served; for words of one token the softmax over scores is that over the words'
    logits.

    Args:
        logprobs: float32 [generated tokens], the log-probabilities of the ids to generate.
        choices: for a classification.
    """
    if choices is None:
        return BatchLoss(-logprobs.sum(), len(logprobs))
    golds, num_candidates = choices["golds"], choices["num_candidates"]
    scores = logprobs.new_zeros(len(golds) * num_candidates).index_add(0, choices["candidate_of"], logprobs)
    scores = class_scores(scores.view(len(golds), num_candidates), choices["class_of"])
    total = F.cross_entropy(scores, golds, reduction="sum")
    return BatchLoss(total, len(golds), (scores.argmax(-1) == golds).sum())


def target_logprobs(
    logits: Tensor, targets: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
) -> Tensor:
    """The log-probabilities of the ids to generate, in float32 (float64 for float64).

    Semantics::

        logits = logits if weight is None else logits @ weight.T + bias
        out = log_softmax(logits.float(), -1).gather(-1, targets[:, None])[:, 0]

    With the frozen output layer's weight the logits exist for a few rows at a time, and so does their gradient, which
    is computed along with them: what is kept for the backward is [generated tokens, width]. For 525 tokens of a
    vocabulary of 50,264 that is 2 MB in place of 200.

    Args:
        logits: [generated tokens, vocabulary], or what the output layer reads, [generated tokens, width].
        targets: int64 [generated tokens].
        weight: [vocabulary, width] of the output layer, frozen; None if ``logits`` are the logits.
        bias: [vocabulary], of the output layer.

    Raises:
        TensorArgumentError: the output layer trains.
    """
    if weight is None:
        return _chosen(logits.to(_at_least_float32(logits.dtype)).log_softmax(-1), targets)
    check_frozen_weight(weight, bias)
    # accelerate has every model's outputs in float32 under mixed precision, whatever the weights are in.
    out: Tensor = _OutputLogprobs.apply(logits.to(weight.dtype), targets, weight, bias)  # type: ignore[no-untyped-call]
    return out


# Every chunk reads the weight twice; 256 rows of 50,000 float32 numbers take 51 MB, and up to three such matrices are
# there at once. A GPU's matrices need more rows to be fast.
_CHUNK, _CHUNK_ON_CUDA = 256, 1024
_ROWS_MULTIPLE = 32


class _OutputLogprobs(torch.autograd.Function):
    """A log-probability depends on its own row alone, so its gradient is that row's, times a number."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, targets: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        out = torch.empty(len(targets), dtype=_at_least_float32(inputs.dtype), device=inputs.device)
        gradient = torch.empty_like(inputs) if ctx.needs_input_grad[0] else None
        for rows in _chunks(len(targets), _CHUNK_ON_CUDA if inputs.is_cuda else _CHUNK):
            num_rows = rows.stop - rows.start
            padded = inputs[rows]
            if not inputs.is_cuda:  # few shapes, for what oneDNN keeps of each
                padded = F.pad(padded, (0, 0, 0, -num_rows % _ROWS_MULTIPLE))
            logprobs = _logits(padded, weight, bias, out.dtype).log_softmax(-1)
            out[rows] = _chosen(logprobs[:num_rows], targets[rows])
            if gradient is not None:
                mean = frozen_linear(logprobs.exp_().to(weight.dtype), weight, transposed=True)
                gradient[rows] = weight[targets[rows]] - mean[:num_rows]
        ctx.save_for_backward(gradient)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return (gradient * grads[0][:, None]).to(gradient.dtype), None, None, None


def _chunks(num_rows: int, most: int) -> Iterator[slice]:
    """Chunks of at most so many rows, of nearly one size."""
    num_chunks = -(-num_rows // most)
    for index in range(num_chunks):
        yield slice(index * num_rows // num_chunks, (index + 1) * num_rows // num_chunks)


def _logits(inputs: Tensor, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The output layer in ``dtype``; from half precision without rounding in between, where torch can (CUDA, 2.8)."""
    if inputs.is_cuda and weight.dtype is not dtype and hasattr(torch.ops.aten.mm, "dtype"):
        logits: Tensor = torch.ops.aten.mm.dtype(inputs, weight.t(), dtype)
        return logits if bias is None else logits.add_(bias)
    return frozen_linear(inputs, weight, bias).to(dtype)


def _chosen(logprobs: Tensor, targets: Tensor) -> Tensor:
    return logprobs.gather(-1, targets[:, None])[:, 0]


def _at_least_float32(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
