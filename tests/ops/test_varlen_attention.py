"""Torch's varlen kernels: which one a card takes, and calls that their own checks of shapes and arguments accept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ops.shared_prefix_cases import MIXED, Case, gathered_by
from torch import Tensor
from torch.fx.operator_schemas import normalize_function
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import CausalVariant

from ruprompt_fast.ops.cuda import varlen_attention
from ruprompt_fast.ops.cuda.cards import Card
from ruprompt_fast.ops.cuda.varlen_attention import EFFICIENT, FLASH, VarlenKernel, varlen_kernel

V100, T4, A10, H100, RTX_5090 = (Card("", capability) for capability in [(7, 0), (7, 5), (8, 6), (9, 0), (12, 0)])

EFFICIENT_BACKWARD = torch.ops.aten._efficient_attention_backward.default


@pytest.fixture
def with_flash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)


@pytest.mark.usefixtures("with_flash")
@pytest.mark.parametrize(
    ("card", "dtype", "dim", "window", "expected"),
    [
        (V100, torch.float16, 96, None, EFFICIENT),
        (V100, torch.float32, 64, None, EFFICIENT),
        (V100, torch.bfloat16, 64, None, None),
        (V100, torch.float16, 64, 16, None),
        (T4, torch.float16, 128, None, EFFICIENT),
        (A10, torch.float16, 96, None, FLASH),
        (A10, torch.float16, 256, None, EFFICIENT),
        (A10, torch.bfloat16, 192, 16, FLASH),
        (H100, torch.bfloat16, 256, 16, FLASH),
        (H100, torch.float32, 64, None, EFFICIENT),
        (H100, torch.float32, 64, 16, None),
        (H100, torch.float64, 64, None, None),
        (H100, torch.float16, 36, None, None),
        (RTX_5090, torch.float16, 256, None, EFFICIENT),
    ],
)
def test_a_card_takes_the_fastest_that_it_has(
    card: Card, dtype: torch.dtype, dim: int, window: int | None, expected: VarlenKernel | None
) -> None:
    query = torch.empty(3, 2, dim, dtype=dtype)
    assert varlen_kernel(query, query, window, card) is expected


@pytest.mark.usefixtures("with_flash")
def test_values_of_another_width_and_switches_of_torch() -> None:
    query, value = torch.empty(3, 2, 64, dtype=torch.float16), torch.empty(3, 2, 32, dtype=torch.float16)
    assert varlen_kernel(query, value, None, H100) is EFFICIENT
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        assert varlen_kernel(query, query, None, H100) is EFFICIENT
    with sdpa_kernel(SDPBackend.MATH):
        assert varlen_kernel(query, query, None, H100) is None


@pytest.mark.parametrize("heads", [(4, 4), (4, 2)])
@pytest.mark.parametrize(
    ("kernel", "dtype", "window"),
    [
        (FLASH, torch.float16, None),
        (FLASH, torch.bfloat16, 16),
        (EFFICIENT, torch.float32, None),
        (EFFICIENT, torch.float16, None),
    ],
)
def test_torch_accepts_the_calls(
    kernel: VarlenKernel,
    dtype: torch.dtype,
    window: int | None,
    heads: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Tensors without memory: torch checks arguments and gives shapes, and computes nothing."""
    monkeypatch.setattr(torch.ops.aten, "_efficient_attention_backward", efficient_backward)
    case = Case(MIXED, heads, dtype, device="meta")
    out, *grads = case.run(gathered_by(kernel), sliding_window=window)
    assert (out.shape, out.dtype) == (case.query.shape, dtype)
    assert [(grad.shape, grad.dtype) for grad in grads] == [(leaf.shape, dtype) for leaf in case.leaves]


def efficient_backward(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
    """What torch's own function for tensors without memory would do if it had the argument ``out``."""
    bound = normalize_function(EFFICIENT_BACKWARD, args, kwargs, normalize_to_only_use_kwargs=True)
    assert bound is not None, "the arguments are not those of the schema"
    assert bound.kwargs["out"].shape == bound.kwargs["grad_out_"].shape
    return (*map(torch.empty_like, args[1:4]), torch.empty(0))


def test_the_mask_is_causal_from_the_bottom_right() -> None:
    """The number that ``torch.nn.attention.bias`` has for it."""
    assert CausalVariant.LOWER_RIGHT.value == varlen_attention._CAUSAL_FROM_BOTTOM_RIGHT
