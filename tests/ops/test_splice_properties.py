"""What holds for every input, looked for by Hypothesis."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ruprompt_fast.errors import MarkerCountError, TokenIdError
from ruprompt_fast.ops import resolve_markers, resolve_markers_reference, splice, splice_reference

DTYPES = st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16])
ID_DTYPES = st.sampled_from([torch.int32, torch.int64])
sizes = st.integers(0, 9)


@st.composite
def splice_arguments(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, int]:
    width, tokens, prompts = draw(sizes), draw(sizes), draw(sizes)
    first = draw(st.integers(0, 14))
    ids = draw(st.lists(st.integers(-2, 25), max_size=20))
    dtype = draw(DTYPES)
    table = torch.arange((tokens + prompts) * width).reshape(tokens + prompts, width).to(dtype)
    return torch.tensor(ids, dtype=draw(ID_DTYPES)), table[:tokens], table[tokens:], first


def result_or_error(function, *arguments) -> Tensor | str:
    try:
        return function(*arguments)
    except (TokenIdError, MarkerCountError) as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(splice_arguments())
def test_splice_is_the_reference_or_the_same_error(arguments: tuple[Tensor, Tensor, Tensor, int]) -> None:
    actual, expected = result_or_error(splice, *arguments), result_or_error(splice_reference, *arguments)
    if isinstance(expected, str) or isinstance(actual, str):
        assert actual == expected
    else:
        assert torch.equal(actual, expected)


@settings(max_examples=100, deadline=None)
@given(ids=st.lists(st.integers(0, 8), min_size=1, max_size=30), width=st.integers(1, 40), seed=st.integers(0, 99))
def test_prompt_gradient_is_linear_in_the_output_gradient(ids: list[int], width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    grad = torch.randint(-8, 9, (len(ids), width), generator=generator).float()
    tokens, prompts = torch.zeros(5, width), torch.zeros(4, width, requires_grad=True)
    input_ids = torch.tensor(ids)
    (actual,) = torch.autograd.grad(splice(input_ids, tokens, prompts, 5), prompts, grad)
    one_hot = (input_ids[None, :] == torch.arange(5, 9)[:, None]).float()
    assert torch.equal(actual, one_hot @ grad)


@settings(max_examples=300, deadline=None)
@given(
    ids=st.lists(st.lists(st.integers(0, 6), min_size=7, max_size=7), max_size=5),
    markers=st.dictionaries(st.integers(3, 6), st.integers(0, 3)),
    dtype=ID_DTYPES,
)
def test_markers_are_the_reference_or_both_fail(ids: list[list[int]], markers: dict[int, int], dtype) -> None:
    input_ids = torch.tensor(ids, dtype=dtype).reshape(-1, 7)
    starts = [100 * (index + 1) for index in range(len(markers))]
    arguments = (input_ids, list(markers), starts, list(markers.values()))
    actual = result_or_error(resolve_markers, *arguments)
    expected = result_or_error(resolve_markers_reference, *arguments)
    assert isinstance(actual, str) == isinstance(expected, str)
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        assert torch.equal(actual, expected)
