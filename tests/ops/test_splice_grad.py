"""The gradients: segment sums in float32 for the prompt table, those of F.embedding for the token table."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from ops.splice_cases import DTYPES, FIRST_PROMPT_ID, NUM_IDS, PROMPT_ROWS, TOKENS, WIDTHS, Case, make_case, make_ids
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.ops import splice, splice_reference


def gradients(function, case: Case, grad: Tensor, tokens: bool = False) -> tuple[Tensor | None, Tensor]:
    """Gradients of the token and the prompt table."""
    token_weight = case.token_weight.clone().requires_grad_(tokens)
    prompt_weight = case.prompt_weight.clone().requires_grad_()
    function(case.input_ids, token_weight, prompt_weight, case.first_prompt_id).backward(grad)
    assert prompt_weight.grad is not None
    return token_weight.grad, prompt_weight.grad


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", NUM_IDS)
def test_prompt_gradient_equals_a_float64_sum(count: int, width: int, dtype: torch.dtype) -> None:
    case = make_case(count, width, dtype)
    grad = torch.randn(count, width).to(dtype)
    token_grad, prompt_grad = gradients(splice, case, grad)
    wide = Case(case.input_ids, case.token_weight.double(), case.prompt_weight.double(), FIRST_PROMPT_ID)
    _, expected = gradients(splice_reference, wide, grad.double())
    assert token_grad is None
    assert prompt_grad.dtype == dtype
    assert_close(prompt_grad, expected)


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", DTYPES)
def test_token_gradient_equals_that_of_embedding(dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    case = make_case(257, 96, dtype, id_dtype)
    grad = torch.randn(257, 96).to(dtype)
    token_grad, _ = gradients(splice, case, grad, tokens=True)
    table = case.token_weight.clone().requires_grad_()
    is_token = case.input_ids < FIRST_PROMPT_ID
    F.embedding(case.input_ids[is_token], table).backward(grad[is_token])
    assert table.grad is not None
    assert token_grad is not None
    assert torch.equal(token_grad, table.grad)


def test_no_gradient_for_a_frozen_prompt_table() -> None:
    ids, tokens, prompts, first = make_case(17, 6)
    tokens.requires_grad_()
    splice(ids, tokens, prompts, first).sum().backward()
    assert tokens.grad is not None
    assert prompts.grad is None


def test_gradient_in_any_layout() -> None:
    case = make_case(60, 96)
    case = case._replace(input_ids=case.input_ids.view(6, 10).T)
    grad = torch.randn(96, 6, 10).permute(2, 1, 0)
    expanded = torch.ones(1).expand(10, 6, 96)
    rows = torch.randn(10, 6, 200)[..., :96]
    for layout in (grad, expanded, rows):
        _, actual = gradients(splice, case, layout)
        _, expected = gradients(splice_reference, case, layout.contiguous())
        assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_run_in_float32(dtype: torch.dtype) -> None:
    # 4,096 + 1 + 1 + ...: a running sum in half precision would stop growing at its start.
    count = 1025
    ids = torch.full((count,), FIRST_PROMPT_ID)
    case = Case(ids, torch.zeros(TOKENS, 6, dtype=dtype), torch.zeros(PROMPT_ROWS, 6, dtype=dtype), FIRST_PROMPT_ID)
    grad = torch.ones(count, 6, dtype=dtype)
    grad[0] = 4096
    _, actual = gradients(splice, case, grad)
    assert torch.equal(actual[0], torch.full((6,), 5120.0, dtype=dtype))
    assert not actual[1:].any()


def test_equal_bits_whatever_the_threads() -> None:
    case = make_case(4097, 768)
    grad = torch.randn(4097, 768)
    threads = torch.get_num_threads()
    results = []
    try:
        for num_threads in (1, 2, 3, 2):
            torch.set_num_threads(num_threads)
            results.append(gradients(splice, case, grad)[1])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(result, results[0]) for result in results)


def test_special_values_pass_through_the_conversions() -> None:
    values = torch.arange(2**16, dtype=torch.int32).to(torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        grad = values.view(dtype).reshape(64, 1024)
        prompts = torch.zeros(64, 1024, dtype=dtype)
        case = Case(torch.arange(64) + 5, torch.zeros(5, 1024, dtype=dtype), prompts, 5)
        _, actual = gradients(splice, case, grad)
        assert torch.equal(actual.isnan(), grad.isnan())
        numbers = ~grad.isnan()
        assert torch.equal(actual[numbers], grad[numbers])


def test_gradcheck_and_gradgradcheck() -> None:
    ids = make_ids(17).view(1, 17)
    tokens = torch.randn(TOKENS, 3, dtype=torch.float64, requires_grad=True)
    prompts = torch.randn(PROMPT_ROWS, 3, dtype=torch.float64, requires_grad=True)

    def function(token_weight: Tensor, prompt_weight: Tensor) -> Tensor:
        return splice(ids, token_weight, prompt_weight, FIRST_PROMPT_ID)

    assert torch.autograd.gradcheck(function, (tokens, prompts))
    assert torch.autograd.gradgradcheck(function, (tokens, prompts))


@pytest.mark.parametrize("count", [0, 17])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("trained", [(False, False), (False, True), (True, True)])
def test_opcheck(count: int, id_dtype: torch.dtype, trained: tuple[bool, bool]) -> None:
    ids, tokens, prompts, first = make_case(count, 6, ids=id_dtype)
    arguments = (ids, tokens.requires_grad_(trained[0]), prompts.requires_grad_(trained[1]), first)
    torch.library.opcheck(torch.ops.ruprompt_fast.splice.default, arguments)


def test_opcheck_of_the_gradient() -> None:
    grad = torch.randn(17, 6, requires_grad=True)
    arguments = (grad, make_ids(17), PROMPT_ROWS, FIRST_PROMPT_ID)
    torch.library.opcheck(torch.ops.ruprompt_fast.splice_prompt_grad.default, arguments)
