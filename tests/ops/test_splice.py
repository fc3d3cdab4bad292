"""The lookup: bitwise identical to the reference, for every size, dtype and layout; errors that name the id."""

from __future__ import annotations

import pytest
import torch
from ops.splice_cases import DTYPES, FIRST_PROMPT_ID, NUM_IDS, PROMPT_ROWS, TOKENS, WIDTHS, make_case, strided

from ruprompt_fast.errors import PromptMismatchError, TensorArgumentError, TokenIdError
from ruprompt_fast.ops import splice, splice_reference


@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("count", NUM_IDS)
def test_equals_the_reference(count: int, width: int, dtype: torch.dtype, id_dtype: torch.dtype) -> None:
    case = make_case(count, width, dtype, id_dtype)
    out = splice(*case)
    assert out.shape == (count, width)
    assert out.dtype == dtype
    assert torch.equal(out, splice_reference(*case))


@pytest.mark.parametrize("shape", [(), (2, 3), (0, 4), (2, 0), (2, 1, 3, 2)])
def test_any_shape_of_ids(shape: tuple[int, ...]) -> None:
    case = make_case(int(torch.Size(shape).numel()), 6)
    ids = case.input_ids.reshape(shape)
    assert torch.equal(splice(ids, *case[1:]), splice_reference(ids, *case[1:]))


@pytest.mark.parametrize("width", WIDTHS)
def test_any_layout(width: int) -> None:
    ids, tokens, prompts, first = make_case(60, width)
    expected = splice_reference(ids.view(6, 10).T, tokens, prompts, first)
    transposed = ids.view(6, 10).T
    assert torch.equal(splice(transposed, tokens, prompts, first), expected)
    assert torch.equal(splice(transposed, strided(tokens), strided(prompts, 1), first), expected)
    by_column = tokens.T.contiguous().T
    assert torch.equal(splice(transposed, by_column, prompts.T.contiguous().T, first), expected)
    expanded = splice(ids[:1].expand(3, 4), tokens, prompts, first)
    assert torch.equal(expanded, expected[:1, :1].expand(3, 4, width))


@pytest.mark.parametrize("width", [2048, 3073])
def test_large_output_takes_the_streaming_path_and_pooled_memory(width: int) -> None:
    case = make_case(4097, width)
    first, second = splice(*case), splice(*case)
    assert first.data_ptr() != second.data_ptr()
    assert torch.equal(first, splice_reference(*case))
    assert torch.equal(second, first)


def test_tables_without_rows() -> None:
    ids, tokens, prompts, first = make_case(17, 6)
    token_ids, prompt_ids = ids[ids < TOKENS], ids[ids >= first]
    assert torch.equal(splice(token_ids, tokens, prompts[:0], first), tokens[token_ids])
    assert torch.equal(splice(prompt_ids, tokens[:0], prompts, first), prompts[prompt_ids - first])
    assert torch.equal(splice(prompt_ids - first, tokens, prompts, 0), prompts[prompt_ids - first])
    assert splice(ids[:0], tokens[:0], prompts[:0], 0).shape == (0, 6)
    assert splice(ids, tokens[:, :0], prompts[:, :0], first).shape == (17, 0)


def test_first_prompt_id_inside_the_token_table() -> None:
    _, tokens, prompts, _ = make_case(17, 6)
    out = splice(torch.tensor([49, 50, 72]), tokens, prompts, 50)
    assert torch.equal(out, torch.stack([tokens[49], prompts[0], prompts[22]]))
    with pytest.raises(TokenIdError, match=r"token ids are 0\.\.49, prompt ids are 50\.\.72"):
        splice(torch.tensor([73]), tokens, prompts, 50)


@pytest.mark.parametrize("bad", [-1, -(2**31), TOKENS, FIRST_PROMPT_ID - 1, FIRST_PROMPT_ID + PROMPT_ROWS, 2**31 - 1])
@pytest.mark.parametrize("function", [splice, splice_reference])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
def test_an_id_in_neither_table_is_named(function, bad: int, id_dtype: torch.dtype) -> None:
    case = make_case(17, 6, ids=id_dtype)
    case.input_ids[13] = bad
    case.input_ids[15] = -7
    message = rf"^id {bad} at flat position 13 .* token ids are 0\.\.100, prompt ids are 120\.\.142$"
    with pytest.raises(TokenIdError, match=message):
        function(*case)


def test_the_error_is_an_index_error() -> None:
    ids, tokens, prompts, _ = make_case(1, 6)
    with pytest.raises(IndexError, match="id 9223372036854775807 .* prompt ids are none"):
        splice(torch.full_like(ids, 2**63 - 1), tokens, prompts[:0], 120)


def test_arguments_that_do_not_fit() -> None:
    ids, tokens, prompts, first = make_case(17, 6)
    with pytest.raises(TensorArgumentError, match="int32 or int64, not torch.float32"):
        splice(ids.float(), tokens, prompts, first)
    with pytest.raises(TensorArgumentError, match=r"\[rows, width\], not \[606\]"):
        splice(ids, tokens.reshape(-1), prompts, first)
    with pytest.raises(TensorArgumentError, match="not torch.int8"):
        splice(ids, tokens.to(torch.int8), prompts.to(torch.int8), first)
    with pytest.raises(PromptMismatchError, match="convert the prompt"):
        splice(ids, tokens, prompts.half(), first)
    with pytest.raises(PromptMismatchError, match="width 5, the token table 6"):
        splice(ids, tokens, prompts[:, :5], first)
    with pytest.raises(TensorArgumentError, match="on one device"):
        splice(ids.to("meta"), tokens, prompts, first)


def test_inference_mode_and_special_values() -> None:
    ids, tokens, prompts, first = make_case(17, 6, torch.float16)
    prompts[0] = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 6e-8, 65504.0])
    with torch.inference_mode():
        out = splice(ids, tokens, prompts, first)
    expected = splice_reference(ids, tokens, prompts, first)
    assert torch.equal(out.view(torch.int16), expected.view(torch.int16))
