"""Linear layers from int8 weights against what the weights mean."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from tolerances import PRODUCT_ERROR, assert_close, relative_error
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.activation import Activation, activate
from ruprompt_fast.ops.cpu.int8_linear import Int8Weight, can_quantize
from ruprompt_fast.ops.int8_linear import int8_linear_reference, quantize

DTYPES = [torch.float32, torch.bfloat16]
# Around the width of a panel and of the vectors, and deep enough for more than one block of inputs.
SIZES = [(1, 1), (7, 5), (31, 33), (32, 32), (64, 31), (65, 64), (256, 97), (257, 130), (600, 161)]
# Around the heights of a tile on every instruction set, and above the number of rows that are tiled at once.
ROWS = [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 25, 49, 481]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor, weight: Int8Weight, bias: Tensor | None, activation: Activation | None) -> Tensor:
    """The sum in float64, rounded once, then the activation."""
    values, scales = weight.quantized()
    total = x.double() @ (values.double() * scales.double()[:, None]).T
    return activate((total if bias is None else total + bias.double()).to(x.dtype), activation)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_equals_what_the_weight_stands_for(in_features: int, out_features: int, dtype: torch.dtype) -> None:
    weight = Int8Weight(random(out_features, in_features).to(dtype))
    bias = random(out_features, seed=1).to(dtype)
    for rows in ROWS:
        x = random(rows, in_features, seed=rows).to(dtype)
        assert_close(weight.linear(x, bias), exact(x, weight, bias, None), PRODUCT_ERROR)
        assert_close(weight.linear(x), int8_linear_reference(x, *weight.quantized()), PRODUCT_ERROR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", [None, "gelu_tanh", "gelu", "relu", "silu"])
def test_activations(activation: Activation | None, dtype: torch.dtype) -> None:
    weight, bias, x = Int8Weight(random(40, 24).to(dtype)), random(40, seed=1).to(dtype), random(3, 24).to(dtype)
    out = weight.linear(x, bias, activation)
    assert_close(out, exact(x, weight, bias, activation), {torch.float32: 2e-6, torch.bfloat16: 2**-7})
    assert_close(
        out,
        int8_linear_reference(x, *weight.quantized(), bias, activation),
        {torch.float32: 2e-6, torch.bfloat16: 2**-7},
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_row_does_not_depend_on_its_batch_or_on_threads(dtype: torch.dtype) -> None:
    weight, bias = Int8Weight(random(300, 200).to(dtype)), random(300, seed=1).to(dtype)
    x = random(500, 200, seed=2).to(dtype)
    alone = torch.cat([weight.linear(row, bias) for row in x.split(1)])
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            for rows in ROWS:
                assert torch.equal(weight.linear(x[:rows], bias), alone[:rows])
    finally:
        torch.set_num_threads(threads)


def test_leading_shapes_and_strides() -> None:
    weight, bias = Int8Weight(random(11, 6)), random(22, seed=1)[::2]
    for leading in ((), (1,), (3,), (2, 3), (2, 1, 4), (0,), (2, 0)):
        x = random(*leading, 6, seed=2)
        out = weight.linear(x, bias)
        assert out.shape == (*leading, 11)
        assert_close(out, exact(x, weight, bias, None), PRODUCT_ERROR)
    wide, tall = random(4, 12, seed=1), random(6, 4, seed=2)
    for x in (wide[:, ::2], tall.t(), wide[1:3, 3:9], wide[:1, :6].expand(5, 6)):
        assert_close(weight.linear(x), exact(x, weight, None, None), PRODUCT_ERROR)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_quantization_is_nearest_per_channel(dtype: torch.dtype) -> None:
    given = (random(37, 50) * torch.logspace(-6, 6, 37)[:, None]).to(dtype)
    given[3] = 0
    weight = Int8Weight(given)
    values, scales = weight.quantized()
    assert values.dtype is torch.int8
    assert values.shape == given.shape
    assert scales.shape == (37,)
    wide = given.float().numpy()
    expected_scales = np.abs(wide).max(1) / np.float32(127)
    expected_scales[3] = 1
    np.testing.assert_array_equal(scales.numpy(), expected_scales)
    np.testing.assert_array_equal(values.numpy(), np.rint(wide / expected_scales[:, None]))
    assert values.abs().max(1).values[torch.arange(37) != 3].eq(127).all()
    assert torch.equal(weight.dense(), (values.float() * scales[:, None]).to(dtype))
    assert relative_error(weight.dense(), given) < 1e-2


def test_ties_round_to_even() -> None:
    values, scales = quantize(torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -127.0]]))
    assert scales.tolist() == [1.0]
    assert values.tolist() == [[127, 0, 2, 2, 0, -2, -127]]


def test_memory_is_a_quarter() -> None:
    assert Int8Weight(random(256, 512)).num_bytes == 256 * 512 + 4 * 256


def test_other_dtypes_of_one_weight() -> None:
    weight = Int8Weight(random(40, 24))
    x = random(3, 24, seed=1).bfloat16()
    other = weight.with_dtype(torch.bfloat16)
    assert_close(other.linear(x), exact(x, weight, None, None), PRODUCT_ERROR)
    assert other.dense().dtype is torch.bfloat16
    assert weight.dtype is torch.float32


def test_copies_and_pickles() -> None:
    weight, x = Int8Weight(random(40, 24)), random(3, 24, seed=1)
    for other in (copy.deepcopy(weight), pickle.loads(pickle.dumps(weight))):
        assert torch.equal(other.linear(x), weight.linear(x))


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(3, 4, dtype=torch.float64),
        torch.ones(3),
        torch.ones(0, 4),
        torch.ones(3, 0),
        torch.ones(2, 3).cfloat(),
    ],
    ids=["float64", "1-D", "no outputs", "no inputs", "complex"],
)
def test_refuses_weights_that_it_cannot_quantize(weight: Tensor) -> None:
    with pytest.raises(TensorArgumentError, match=r"weight to quantize must be \[out_features, in_features\]"):
        Int8Weight(weight)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_refuses_weights_that_are_not_finite(bad: float) -> None:
    weight = torch.ones(3, 4)
    weight[1, 2] = bad
    with pytest.raises(TensorArgumentError, match="NaN or infinity in 1 of its 3 channels"):
        Int8Weight(weight)


@pytest.mark.parametrize("x", [torch.ones(2, 4), torch.ones(2, 5).bfloat16(), torch.ones(2, 5, device="meta")])
def test_refuses_other_inputs(x: Tensor) -> None:
    with pytest.raises(TensorArgumentError, match=r"the input must be \[..., 5\] of torch.float32"):
        Int8Weight(torch.ones(3, 5)).linear(x)


def test_where_it_can_be_used() -> None:
    assert can_quantize(torch.float32, torch.device("cpu"))
    assert not can_quantize(torch.float16, torch.device("cpu"))
    assert not can_quantize(torch.float32, torch.device("cuda"))
