"""The Triton kernels on the CPU; run by test_kernels_interpreted.py, or by hand with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from ops.splice_cases import DTYPES, FIRST_PROMPT_ID, NUM_IDS, PROMPT_ROWS, TOKENS, WIDTHS, make_case, make_ids, strided
from tolerances import assert_close

from ruprompt_fast.kernels import splice as kernels
from ruprompt_fast.ops import splice, splice_reference
from ruprompt_fast.ops.cuda.id_errors import NUM_SLOTS, IdErrorSlots
from ruprompt_fast.ops.cuda.splice import splice_into_slots, sum_segments

# The interpreter takes milliseconds for each program.
SHAPES = [(count, width) for count in NUM_IDS for width in WIDTHS if count * width < 500_000]


@pytest.fixture
def errors() -> IdErrorSlots:
    return IdErrorSlots(torch.zeros(NUM_SLOTS, dtype=torch.int64))


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_splice_kernel(errors: IdErrorSlots, count: int, width: int) -> None:
    case = make_case(count, width, torch.float16)
    assert torch.equal(splice_into_slots(*case, errors), splice_reference(*case))
    assert not errors.pending


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_splice_kernel_in_any_layout(errors: IdErrorSlots, dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    ids, tokens, prompts, first = make_case(18, 97, dtype, id_dtype)
    ids = ids.view(3, 6).T
    out = splice_into_slots(ids, strided(tokens), strided(prompts, 3), first, errors)
    assert torch.equal(out, splice_reference(ids, tokens, prompts, first))


def test_rows_of_several_blocks(errors: IdErrorSlots) -> None:
    case = make_case(5, 5000)
    assert torch.equal(splice_into_slots(*case, errors), splice_reference(*case))


def test_tables_without_rows(errors: IdErrorSlots) -> None:
    ids, tokens, prompts, first = make_case(17, 6)
    is_token = ids < first
    assert torch.equal(splice_into_slots(ids[is_token], tokens, prompts[:0], first, errors), tokens[ids[is_token]])
    out = splice_into_slots(ids[~is_token], tokens[:0], prompts, first, errors)
    assert torch.equal(out, prompts[ids[~is_token] - first])
    assert not errors.pending


@pytest.mark.parametrize("bad", [-1, -(2**40), TOKENS, FIRST_PROMPT_ID - 1, FIRST_PROMPT_ID + PROMPT_ROWS, 2**63 - 1])
def test_an_id_in_neither_table_gives_nan_and_leaves_its_name(errors: IdErrorSlots, bad: int) -> None:
    case = make_case(17, 96, torch.float16)
    expected = splice_reference(*case)
    case.input_ids[13] = bad
    expected[13] = float("nan")
    torch.testing.assert_close(splice_into_slots(*case, errors), expected, rtol=0, atol=0, equal_nan=True)
    assert errors.pending
    assert str(errors.take()) == (
        f"id {bad} at flat position 13 of input_ids is in neither table: token ids are 0..100, prompt ids are 120..142"
    )
    assert not errors.pending


def test_the_first_of_several_errors_is_kept_whole(errors: IdErrorSlots) -> None:
    case = make_case(17, 1537)
    case.input_ids[4], case.input_ids[9] = -3, 110
    splice_into_slots(*case, errors)
    splice_into_slots(*make_case(17, 6), errors)
    assert "id -3 at flat position 4 " in str(errors.take())


@pytest.mark.parametrize(("count", "width"), SHAPES)
def test_prompt_grad_kernel(count: int, width: int) -> None:
    ids, grad = make_ids(count), torch.randn(count, width)
    actual = sum_segments(grad, ids, PROMPT_ROWS, FIRST_PROMPT_ID)
    expected = torch.zeros(PROMPT_ROWS, width, dtype=torch.float64)
    is_prompt = ids >= FIRST_PROMPT_ID
    expected.index_add_(0, ids[is_prompt] - FIRST_PROMPT_ID, grad[is_prompt].double())
    assert_close(actual, expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
def test_prompt_grad_kernel_in_any_dtype_and_layout(dtype: torch.dtype) -> None:
    ids = make_ids(60, torch.int32).view(6, 10).T
    grad = torch.randn(10, 6, 120).to(dtype)[..., :97]
    _, tokens, prompts, first = make_case(0, 97, torch.float64)
    prompts.requires_grad_()
    (expected,) = torch.autograd.grad(splice(ids, tokens, prompts, first), prompts, grad.double())
    assert_close(sum_segments(grad, ids, PROMPT_ROWS, first), expected)


def test_prompt_grad_kernel_with_no_rows() -> None:
    assert sum_segments(torch.randn(5, 6), torch.arange(5), 0, 9).shape == (0, 6)


@pytest.mark.parametrize("count", [15, 32 * PROMPT_ROWS + 1])
def test_prompt_grad_kernel_of_long_and_short_segments(count: int) -> None:
    ids, grad = FIRST_PROMPT_ID + torch.arange(count) % 7, torch.randn(count, 300)
    expected = torch.zeros(PROMPT_ROWS, 300, dtype=torch.float64).index_add_(0, ids - FIRST_PROMPT_ID, grad.double())
    assert_close(sum_segments(grad, ids, PROMPT_ROWS, FIRST_PROMPT_ID), expected)


def test_more_prompt_rows_than_short_keys_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    launched = []
    monkeypatch.setattr(kernels, "launch_prompt_grad", lambda *arguments: launched.append(arguments))
    for prompt_rows in (32_767, 32_768, 40_001):
        last = prompt_rows - 1
        sum_segments(torch.randn(6, 6), torch.tensor([3, last, 7, last, 0, prompt_rows]), prompt_rows, 0)
        order, starts, *_ = launched.pop()
        segments = [order[starts[row] : starts[row + 1]].tolist() for row in (0, 3, 5, 7, last)]
        assert segments == [[4], [0], [], [2], [1, 3]]
