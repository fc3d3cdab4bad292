"""The Triton kernel of norms on the CPU; run by test_kernels_interpreted.py, or with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from ops.norm_cases import DTYPES, KINDS, WIDTHS, make_case
from tolerances import RELATIVE_ERROR, assert_close

from ruprompt_fast.ops.add_norm import NormKind, add_norm, add_norm_reference, norm, norm_reference

# Triton's interpreter cuts off what bfloat16 does not hold, where a card rounds. Llama's norm is rounded twice, and
# what is rounded lies in a few places on the other side of a tie.
ERROR = {**RELATIVE_ERROR, torch.float16: 2**-10, torch.bfloat16: 2**-6}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norms(dtype: torch.dtype, width: int, kind: NormKind) -> None:
    case = make_case((3, width), dtype, kind)
    x, residual, *rest = case
    total, normalized = add_norm(*case)
    assert_close(total, x + residual, ERROR)
    assert_close(normalized, norm_reference(total, *rest), ERROR)
    assert_close(norm(x, *rest), norm_reference(x, *rest), ERROR)


@pytest.mark.parametrize("kind", KINDS)
def test_layouts(kind: NormKind) -> None:
    x, residual, *rest = make_case((2, 3, 20), torch.float32, kind)
    weight, bias, eps, kind = rest
    strided = [weight.repeat_interleave(2)[::2], None if bias is None else bias.repeat_interleave(2)[::2]]
    for given in (x.transpose(0, 1), x[:, 1], x[:, :0], x[0, 0], x.expand(4, 2, 3, 20)):
        other = residual[0, 0].expand_as(given)
        expected = add_norm_reference(given, other, *rest)
        for actual, wanted in zip(add_norm(given, other, *strided, eps, kind), expected, strict=True):
            assert actual.is_contiguous()
            assert_close(actual, wanted)
    wide = torch.randn(5, 60)[:, 10:30]
    assert_close(norm(wide, *rest), norm_reference(wide, *rest))


def test_no_bias() -> None:
    x, residual, weight, *_ = make_case((3, 33), torch.float32, "layer_norm")
    arguments = (x, residual, weight, None, 1e-5, "layer_norm")
    assert_close(add_norm(*arguments)[1], add_norm_reference(*arguments)[1])


def test_rows_that_do_not_fit_take_the_reference() -> None:
    case = make_case((1, 16385), torch.float32, "rms_norm")
    for actual, expected in zip(add_norm(*case), add_norm_reference(*case), strict=True):
        assert torch.equal(actual, expected)
    assert torch.equal(norm(case[0], *case[2:]), norm_reference(case[0], *case[2:]))
