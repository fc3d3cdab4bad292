"""How far a result may lie from its reference, per dtype: the one place where tests take it from."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

# Relative error in the Frobenius norm of what is summed in float32 (float64 for float64) and rounded once to the dtype:
# half a unit in the last place, or a few for float32 and float64, whose sums round at every step.
RELATIVE_ERROR = {
    torch.float64: 1e-15,
    torch.float32: 5e-7,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-8,
}

# The same for matrix products in the order of a library's choice and functions of them such as GELU, which libraries
# approximate to a few units in the last place of float32.
PRODUCT_ERROR = {**RELATIVE_ERROR, torch.float32: 2e-6}

# The same under Triton's interpreter, which cuts off what bfloat16 does not hold where a card rounds.
INTERPRETED_ERROR = {**PRODUCT_ERROR, torch.bfloat16: 2**-7}


def relative_error(actual: Tensor, expected: Tensor, summed: Tensor | None = None) -> float:
    """``|actual - expected| / |summed|`` in float64; zero where both are empty or zero.

    Args:
        actual: the result.
        expected: its reference.
        summed: the sum of the magnitudes that the result is a sum of, where they may cancel: rounding is relative to
            them, not to what is left. Defaults to ``expected``.
    """
    difference = (actual.double() - expected.double()).norm()
    return 0.0 if difference == 0 else float(difference / (expected if summed is None else summed).double().norm())


def assert_close(
    actual: Tensor,
    expected: Tensor,
    allowed: Mapping[torch.dtype, float] = MappingProxyType(RELATIVE_ERROR),
    *,
    summed: Tensor | None = None,
) -> None:
    """Asserts shape, dtype and the relative error that ``actual``'s dtype allows; see :func:`relative_error`."""
    assert actual.shape == expected.shape
    error = relative_error(actual, expected, summed)
    assert error <= allowed[actual.dtype], f"relative error {error:.3g} in {actual.dtype}"


# Absolute error, in nats, of a log-probability in float32: log-softmax and, for beams, a sum over a few dozen tokens,
# after logits that were computed with and without a cache.
LOGPROB_ERROR = 2e-5

# Absolute error of logits of order 1 in float32, whole models long, against transformers' own eager forward.
LOGITS_ERROR = 1e-4

# Relative error of attention and its gradients, which are sums of products of rounded softmax weights: a few times the
# rounding of the dtype.
ATTENTION_GRADIENT_ERROR = {torch.float64: 3e-15, torch.float32: 1e-6, torch.bfloat16: 2**-6}

# Relative error of a batch's loss, and of a prompt's gradient in the Frobenius norm, whole models long, against every
# example alone. In bfloat16 against float32 with the same weights.
LOSS_ERROR = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 1e-2}
GRADIENT_ERROR = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-3}
