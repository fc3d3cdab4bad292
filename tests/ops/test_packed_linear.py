"""Linear layers from packed weights against F.linear."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from tolerances import PRODUCT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops.activation import Activation, activate
from ruprompt_fast.ops.cpu.packed_linear import PackedWeight, can_pack
from ruprompt_fast.ops.packed_linear import PlainWeight, packed_linear_reference

DTYPES = [torch.float32, torch.bfloat16]
ACTIVATIONS: list[Activation | None] = [None, "gelu_tanh", "gelu", "relu", "silu"]
SIZES = [(1, 1), (7, 5), (17, 33), (64, 48), (33, 130)]


@pytest.fixture(params=DTYPES, ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    if not can_pack(request.param, torch.device("cpu")):
        pytest.skip(f"oneDNN has no {request.param} on this processor")
    return request.param


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation | None) -> Tensor:
    """The reference in float64, rounded once."""
    wide = packed_linear_reference(x.double(), weight.double(), None if bias is None else bias.double(), activation)
    return wide.to(x.dtype)


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("in_features", "out_features"), SIZES)
def test_equals_the_reference(
    in_features: int, out_features: int, activation: Activation | None, with_bias: bool, dtype: torch.dtype
) -> None:
    weight = random(out_features, in_features).to(dtype)
    bias = random(out_features, seed=1).to(dtype) if with_bias else None
    packed = PackedWeight(weight)
    for rows in (1, 2, 9, 40):
        x = random(rows, in_features, seed=rows).to(dtype)
        assert_close(packed.linear(x, bias, activation), exact(x, weight, bias, activation), PRODUCT_ERROR)


@pytest.mark.parametrize("leading", [(), (1,), (3,), (2, 3), (1, 8), (2, 1, 4), (0,), (2, 0)])
def test_leading_shapes(leading: tuple[int, ...], dtype: torch.dtype) -> None:
    weight, bias, x = random(11, 6).to(dtype), random(11, seed=1).to(dtype), random(*leading, 6, seed=2).to(dtype)
    out = PackedWeight(weight).linear(x, bias)
    assert out.shape == (*leading, 11)
    assert_close(out, exact(x, weight, bias, None), PRODUCT_ERROR)


def test_strided_inputs_and_weights(dtype: torch.dtype) -> None:
    weight = random(6, 11).to(dtype).t()
    packed = PackedWeight(weight)
    wide, tall = random(4, 12, seed=1).to(dtype), random(6, 4, seed=2).to(dtype)
    for x in (wide[:, ::2], tall.t(), wide[1:3, 3:9], wide[:1, :6].expand(5, 6)):
        out = packed.linear(x)
        assert out.is_contiguous()
        assert_close(out, exact(x, weight, None, None), PRODUCT_ERROR)


@pytest.mark.parametrize(("in_features", "out_features"), [*SIZES, (768, 2304), (48, 50257)])
def test_the_weight_comes_back_bit_for_bit(in_features: int, out_features: int, dtype: torch.dtype) -> None:
    weight = random(out_features, in_features).to(dtype)
    weight[0, 0], weight[-1, -1] = -0.0, torch.finfo(dtype).tiny
    back = PackedWeight(weight).dense()
    assert back.dtype is dtype
    assert torch.equal(back.view(torch.uint8), weight.view(torch.uint8))
    assert back.data_ptr() != weight.data_ptr()


def test_copies_and_pickles(dtype: torch.dtype) -> None:
    weight, x = random(7, 5).to(dtype), random(2, 5, seed=1).to(dtype)
    packed = PackedWeight(weight)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):
        assert torch.equal(other.linear(x), packed.linear(x))
        assert torch.equal(other.dense(), weight)


@pytest.mark.parametrize(
    "weight",
    [
        torch.ones(3, 4, dtype=torch.float64),
        torch.ones(3, 4, dtype=torch.int8),
        torch.ones(3),
        torch.ones(0, 4),
        torch.ones(3, 0),
        torch.ones(3, 4, device="meta"),
    ],
    ids=["float64", "int8", "1-D", "no outputs", "no inputs", "meta"],
)
def test_refuses_weights_that_it_cannot_pack(weight: Tensor) -> None:
    with pytest.raises(TensorArgumentError, match=r"weight to pack must be \[out_features, in_features\]"):
        PackedWeight(weight)


@pytest.mark.parametrize("x", [torch.ones(2, 4), torch.ones(2, 5, dtype=torch.float64)], ids=["width", "dtype"])
def test_refuses_other_inputs(x: Tensor) -> None:
    with pytest.raises(TensorArgumentError, match=r"the input must be \[..., 5\] of torch.float32; found \[2, "):
        PackedWeight(torch.ones(3, 5)).linear(x)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_plain_weights_are_the_reference(activation: Activation | None) -> None:
    weight, bias, x = random(7, 5).double(), random(7, seed=1).double(), random(2, 5, seed=2).double()
    plain = PlainWeight(weight)
    assert plain.dense() is weight
    assert torch.equal(plain.linear(x, bias, activation), packed_linear_reference(x, weight, bias, activation))


def test_activations() -> None:
    x = torch.linspace(-4, 4, 33, dtype=torch.float64)
    normal = torch.distributions.Normal(torch.tensor(0.0, dtype=torch.float64), 1.0)
    torch.testing.assert_close(activate(x, "gelu"), x * normal.cdf(x))
    torch.testing.assert_close(activate(x, "gelu_tanh"), x * normal.cdf(x), atol=5e-4, rtol=0)
    torch.testing.assert_close(activate(x, "silu"), x * torch.sigmoid(x))
    assert torch.equal(activate(x, "relu"), x.clamp(min=0))
    assert activate(x, None) is x
