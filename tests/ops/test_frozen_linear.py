"""Linear layers of frozen weights: output and gradient equal to F.linear's."""

from __future__ import annotations

import pytest
import torch
from tolerances import PRODUCT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import frozen_linear, frozen_linear_reference

SIZES = [(1, 1), (7, 5), (33, 130), (64, 48)]


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
@pytest.mark.parametrize("leading", [(9,), (1, 17), (2, 3, 4), (0,)])
def test_equals_the_reference(
    leading: tuple[int, ...], in_features: int, out_features: int, with_bias: bool, transposed: bool, dtype: torch.dtype
) -> None:
    shape = (in_features, out_features) if transposed else (out_features, in_features)
    weight = random(*shape, seed=1, dtype=dtype)
    bias = random(out_features, seed=2, dtype=dtype) if with_bias else None
    results = []
    for function in (frozen_linear, frozen_linear_reference):
        x = random(*leading, in_features, dtype=dtype).requires_grad_()
        out = function(x, weight, bias, transposed)
        (grad,) = torch.autograd.grad((out * random(*out.shape, seed=3, dtype=dtype)).sum(), x)
        results.append((out.detach(), grad))
    for actual, expected in zip(*results, strict=True):
        assert_close(actual, expected, PRODUCT_ERROR)


def test_strided_inputs_and_gradients() -> None:
    weight = random(24, 16)
    x = random(16, 10).t().requires_grad_()
    (grad,) = torch.autograd.grad(frozen_linear(x, weight).t()[::2].sum(), x)
    (expected,) = torch.autograd.grad(frozen_linear_reference(x, weight).t()[::2].sum(), x)
    assert_close(grad, expected, PRODUCT_ERROR)


def test_weights_that_train_are_refused() -> None:
    weight, bias = random(3, 2).requires_grad_(), random(3)
    with pytest.raises(TensorArgumentError, match="must not require gradients"):
        frozen_linear(random(4, 2), weight)
    with pytest.raises(TensorArgumentError, match="must not require gradients"):
        frozen_linear(random(4, 2), weight.detach(), bias.requires_grad_())
