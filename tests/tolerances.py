"""How far a result may lie from its reference, per dtype: the one place where tests take it from."""

from __future__ import annotations

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


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """``|actual - expected| / |expected|`` in float64; zero where both are empty or zero."""
    difference = (actual.double() - expected.double()).norm()
    return 0.0 if difference == 0 else float(difference / expected.double().norm())


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """Asserts shape, dtype and the relative error that ``actual``'s dtype allows."""
    assert actual.shape == expected.shape
    error = relative_error(actual, expected)
    assert error <= RELATIVE_ERROR[actual.dtype], f"relative error {error:.3g} in {actual.dtype}"
