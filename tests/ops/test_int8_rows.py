"""Frozen weights as int8 in rows, where no kernel runs: in every dtype, at any strides, in parts."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import PRODUCT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.cuda import int8_linear as module
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.int8_linear import Int8Weight, can_quantize, way_of
from ruprompt_fast.ops.int8_linear import int8_linear_reference, quantize


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_equals_what_the_weight_stands_for(dtype: torch.dtype) -> None:
    given, bias, x = random(37, 21).to(dtype), random(37, seed=1).to(dtype), random(2, 3, 21, seed=2).to(dtype)
    weight = Int8Weight(given)
    values, scales = weight.quantized()
    assert weight.num_bytes == 37 * 32 + 37 * 4
    assert torch.equal(weight.dense(), (values.float() * scales[:, None]).to(dtype))
    expected = int8_linear_reference(x, *quantize(given.float()), bias, "gelu")
    assert torch.equal(weight.linear(x, bias, "gelu"), expected)
    summed = x.double() @ (values.double() * scales.double()[:, None]).T
    assert_close(weight.linear(x), summed.to(dtype), PRODUCT_ERROR)


def test_parts_and_strides_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    given = random(21, 37)
    whole = Int8Weight(given.t())
    monkeypatch.setattr(module, "_PLAIN_BYTES", 4 * 21 * 5)
    for weight in (Int8Weight(given.t()), Int8Weight(given.t().contiguous()), Int8Weight(random(21, 74)[:, :37].t())):
        assert weight._values.is_contiguous()
        assert weight._values.stride(0) % 16 == 0
    parts = Int8Weight(given.t())
    assert all(map(torch.equal, parts.quantized(), whole.quantized()))


def test_other_dtypes_copies_and_pickles() -> None:
    weight, x = Int8Weight(random(40, 24), V100), random(3, 24, seed=1)
    other = weight.with_dtype(torch.float16)
    assert (other.dtype, weight.dtype) == (torch.float16, torch.float32)
    assert torch.equal(other.linear(x.half()), int8_linear_reference(x.half(), *weight.quantized()))
    for each in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(each.linear(x), weight.linear(x))


def test_bad_arguments_are_named() -> None:
    for bad in (torch.ones(3), torch.ones(0, 4), torch.ones(3, 4).double(), torch.ones(3, 4, device="meta")):
        with pytest.raises(TensorArgumentError, match=r"weight to quantize must be \[out_features, in_features\]"):
            Int8Weight(bad)
    weight = Int8Weight(torch.ones(3, 5))
    for bad in (torch.ones(2, 4), torch.ones(2, 5).half(), torch.ones(2, 5, device="meta")):
        with pytest.raises(TensorArgumentError, match=r"the input must be \[\.\.\., 5\] of torch.float32 on cpu"):
            weight.linear(bad)
    with pytest.raises(TensorArgumentError, match="NaN or infinity in 1 of its 3 channels"):
        Int8Weight(torch.tensor([[1.0], [torch.nan], [2.0]]))
    assert not can_quantize(torch.float64, torch.device("cpu"))


@pytest.mark.parametrize(
    ("num_rows", "dtype", "on_v100", "on_h100"),
    [
        (1, torch.float16, "rows", "rows"),
        (4, torch.float16, "rows", "rows"),
        (5, torch.float16, "rows", "tile"),
        (5, torch.float32, "rows", "rows"),
        (17, torch.float16, "library", "tile"),
        (17, torch.float32, "library", "library"),
        (64, torch.bfloat16, "library", "tile"),
        (65, torch.bfloat16, "library", "library"),
    ],
)
def test_ways(num_rows: int, dtype: torch.dtype, on_v100: str, on_h100: str) -> None:
    assert way_of(num_rows, dtype, V100) == on_v100
    assert way_of(num_rows, dtype, Card("H100", (9, 0))) == on_h100
