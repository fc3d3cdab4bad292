"""Norms and the residual before them, in plain PyTorch."""

from __future__ import annotations

import pytest
import torch
from ops.norm_cases import DTYPES, KINDS, make_case
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.add_norm import NormKind, add_norm, norm


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equals_the_formula_in_float64(dtype: torch.dtype, kind: NormKind) -> None:
    x, residual, weight, bias, eps, _ = make_case((3, 4, 33), dtype, kind)
    total, normalized = add_norm(x, residual, weight, bias, eps, kind)
    assert torch.equal(total, x + residual)
    h, w = total.double(), weight.double()
    if bias is not None:
        h = h - h.mean(-1, keepdim=True)
    h = h / (h.pow(2).mean(-1, keepdim=True) + eps).sqrt()
    expected = h * (1 + w) if kind == "rms_norm_plus_one" else h * w
    expected = expected if bias is None else expected + bias.double()
    rounded_twice = {torch.float32: 1e-6, torch.float16: 2**-10, torch.bfloat16: 2**-7}
    assert_close(normalized, expected, rounded_twice)
    assert torch.equal(norm(total, weight, bias, eps, kind), normalized)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 3).double()}, r"x must be \[..., width\] of float32, float16 or bfloat16"),
        ({"x": torch.ones(2, 0)}, "x must be"),
        ({"x": torch.tensor(1.0)}, "x must be"),
        (
            {"residual": torch.ones(1, 3)},
            r"the residual must be as x is, \[2, 3\] of torch.float32 on cpu; found \[1, 3\]",
        ),
        ({"residual": torch.ones(2, 3).half()}, "found .* of torch.float16"),
        ({"weight": torch.ones(4)}, r"weight must be \[3\] of torch.float32 on cpu; found \[4\]"),
        ({"bias": torch.ones(3).half()}, r"bias must be \[3\] of torch.float32 on cpu; found \[3\] of torch.float16"),
        ({"bias": torch.ones(3), "kind": "rms_norm"}, "only layer_norm has a bias; found one for rms_norm"),
    ],
    ids=str,
)
def test_bad_arguments_are_named(change: dict[str, Tensor | str], message: str) -> None:
    given = {
        "x": torch.ones(2, 3),
        "residual": torch.ones(2, 3),
        "weight": torch.ones(3),
        "bias": None,
        "eps": 1e-5,
        "kind": "layer_norm",
    }
    with pytest.raises(TensorArgumentError, match=message):
        add_norm(**{**given, **change})
