"""Losses from logits or from what the output layer reads, against torch's own cross entropy."""

from __future__ import annotations

import pytest
import torch
from tolerances import PRODUCT_ERROR, assert_close
from torch import Tensor
from torch.nn import functional as F

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.training.losses import Choices, batch_loss, target_logprobs


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("num_tokens", [1, 255, 256, 257, 600])
@pytest.mark.parametrize("with_bias", [False, True])
def test_logprobs_through_the_output_layer(num_tokens: int, with_bias: bool) -> None:
    inputs = random(num_tokens, 12).requires_grad_()
    weight = random(40, 12, seed=1)
    bias = random(40, seed=2) if with_bias else None
    targets = torch.arange(num_tokens) * 7 % 40
    upstream = random(num_tokens, seed=3)
    expected = F.linear(inputs, weight, bias).log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    actual = target_logprobs(inputs, targets, weight, bias)
    assert_close(actual.detach(), expected.detach(), PRODUCT_ERROR)
    [grad] = torch.autograd.grad((actual * upstream).sum(), inputs)
    [expected_grad] = torch.autograd.grad((expected * upstream).sum(), inputs)
    assert_close(grad, expected_grad, PRODUCT_ERROR)


def test_gradients_by_differences() -> None:
    inputs, weight = random(5, 3).double().requires_grad_(), random(7, 3, seed=1).double()
    targets = torch.tensor([0, 6, 3, 3, 1])
    assert torch.autograd.gradcheck(lambda x: target_logprobs(x, targets, weight), inputs)
    logits = random(5, 7).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: target_logprobs(x, targets), logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    logits = random(4, 30).to(dtype)
    targets = torch.tensor([1, 2, 3, 4])
    expected = -F.cross_entropy(logits.float(), targets, reduction="none")
    assert_close(target_logprobs(logits, targets), expected, PRODUCT_ERROR)
    inputs, weight = random(4, 8).to(dtype), random(30, 8).to(dtype)
    assert target_logprobs(inputs, targets, weight).dtype is torch.float32


def test_text_is_summed() -> None:
    loss = batch_loss(torch.tensor([-1.0, -2.5]), None)
    assert (float(loss.total), loss.num_items, loss.num_correct) == (3.5, 2, None)


def choices_among(
    candidate_of: list[int], golds: list[int], class_of: tuple[int, ...] | None, num_candidates: int
) -> Choices:
    return Choices(
        num_candidates=num_candidates,
        candidate_of=torch.tensor(candidate_of),
        golds=torch.tensor(golds),
        class_of=class_of,
    )


def test_classes_are_compared_by_their_words() -> None:
    # Two samples with two label words, of one token and of two.
    logprobs = torch.tensor([-1.0, -0.5, -2.0, -3.0, -0.1, -0.2])
    choices = choices_among([0, 1, 1, 2, 3, 3], golds=[0, 0], class_of=None, num_candidates=2)
    scores = torch.tensor([[-1.0, -2.5], [-3.0, -0.3]])
    loss = batch_loss(logprobs, choices)
    assert loss.total.item() == pytest.approx(F.cross_entropy(scores, torch.tensor([0, 0]), reduction="sum").item())
    assert (loss.num_items, loss.num_correct) == (2, 1)


def test_the_words_of_a_class_add_up() -> None:
    # Two samples, two classes: the first with two words, the second with one of two tokens.
    logprobs = torch.tensor([-1.0, -2.0, -0.5, -0.5, -3.0, -1.0, -0.1, -0.2]).requires_grad_()
    choices = choices_among([0, 1, 2, 2, 3, 4, 5, 5], golds=[0, 1], class_of=(0, 0, 1), num_candidates=3)
    probabilities = torch.tensor([[-1.0, -2.0, -1.0], [-3.0, -1.0, -0.3]]).exp()
    first = (probabilities[0, 0] + probabilities[0, 1]) / probabilities[0].sum()
    second = probabilities[1, 2] / probabilities[1].sum()
    loss = batch_loss(logprobs, choices)
    assert loss.total.item() == pytest.approx(-(first.log() + second.log()).item(), abs=1e-6)
    assert (loss.num_items, loss.num_correct) == (2, 2)
    loss.total.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.isfinite().all()


def test_an_output_layer_that_trains_is_refused() -> None:
    inputs, weight = random(2, 3), random(5, 3, seed=1).requires_grad_()
    with pytest.raises(TensorArgumentError, match="must not require gradients"):
        target_logprobs(inputs, torch.tensor([0, 1]), weight)
    with torch.no_grad():
        assert target_logprobs(inputs, torch.tensor([0, 1]), weight).isfinite().all()
