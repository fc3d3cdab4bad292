"""The Triton kernels of int8 layers on the CPU; run by test_kernels_interpreted.py, or with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from tolerances import PRODUCT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.ops.activation import Activation
from ruprompt_fast.ops.cuda import int8_linear as module
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.int8_linear import Int8Weight, int8_linear_cuda, way_of
from ruprompt_fast.ops.int8_linear import int8_linear_reference

H100 = Card("H100", (9, 0))
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Triton's interpreter cuts off what bfloat16 does not hold, where a card rounds.
SUM_ERROR = {**PRODUCT_ERROR, torch.bfloat16: 2**-7}
# A sum or a weight that is rounded to the dtype on the way.
ROUNDED_ERROR = {**SUM_ERROR, torch.float16: 2**-10}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def case(in_features: int, out_features: int, dtype: torch.dtype) -> tuple[Int8Weight, Tensor]:
    weight = Int8Weight((random(out_features, in_features) / in_features**0.5).to(dtype))
    return weight, random(out_features, seed=1).to(dtype)


def run(x: Tensor, weight: Int8Weight, bias: Tensor | None, activation: Activation | None, card: Card) -> Tensor:
    return int8_linear_cuda(x, weight._values, weight._scales, bias, activation, card)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("card", [V100, H100], ids=lambda card: card.name)
@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 16, 17, 65])
def test_every_way(rows: int, card: Card, dtype: torch.dtype) -> None:
    if way_of(rows, dtype, card) == "tile" and dtype is torch.bfloat16:
        pytest.skip("Triton's interpreter multiplies the bits of bfloat16 as integers in tl.dot")
    weight, bias = case(97, 37, dtype)
    x = random(rows, 97, seed=2).to(dtype)
    expected = int8_linear_reference(x, *weight.quantized(), bias)
    allowed = ROUNDED_ERROR if way_of(rows, dtype, card) == "library" else SUM_ERROR
    assert_close(run(x, weight, bias, None, card), expected, allowed)


@pytest.mark.parametrize("activation", ["gelu_tanh", "gelu", "relu", "silu"])
@pytest.mark.parametrize(("rows", "card"), [(3, V100), (7, H100), (17, V100)], ids=["rows", "tile", "library"])
def test_activations(rows: int, card: Card, activation: Activation) -> None:
    for dtype in (torch.float32, torch.float16):
        weight, bias = case(64, 16, dtype)
        x = (3 * random(rows, 64, seed=2)).to(dtype)
        expected = int8_linear_reference(x, *weight.quantized(), bias, activation)
        assert_close(run(x, weight, bias, activation, card), expected, ROUNDED_ERROR)


def test_several_blocks_of_inputs_and_channels_that_end_within_a_program() -> None:
    for rows, card in ((1, V100), (4, V100), (6, H100)):
        weight, _ = case(1049, 33, torch.float16)
        x = random(rows, 1049, seed=2).half()
        assert_close(run(x, weight, None, None, card), int8_linear_reference(x, *weight.quantized()), PRODUCT_ERROR)


def test_the_plain_weight_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLAIN_BYTES", 2 * 97 * 16)
    weight, bias = case(97, 37, torch.float16)
    x = random(20, 97, seed=2).half()
    for given in (bias, None):
        expected = int8_linear_reference(x, *weight.quantized(), given)
        assert_close(run(x, weight, given, None, V100), expected, ROUNDED_ERROR)


def test_leading_shapes_and_strides() -> None:
    weight, bias = Int8Weight(random(11, 6)), random(22, seed=1)[::2]
    for leading in ((), (3,), (2, 3), (0,), (2, 0)):
        x = random(*leading, 6, seed=2)
        assert_close(weight.linear(x, bias), int8_linear_reference(x, *weight.quantized(), bias), PRODUCT_ERROR)
    wide, tall = random(4, 12, seed=1), random(6, 4, seed=2)
    for x in (wide[:, ::2], tall.t(), wide[1:3, 3:9], wide[:1, :6].expand(5, 6)):
        assert_close(weight.linear(x), int8_linear_reference(x, *weight.quantized()), PRODUCT_ERROR)


def test_infinite_inputs_stay_what_they_are() -> None:
    weight, _ = case(16, 16, torch.float32)
    x = random(1, 16, seed=2)
    x[0, 3] = torch.inf
    expected = int8_linear_reference(x, *weight.quantized())
    torch.testing.assert_close(weight.linear(x), expected, equal_nan=True)
