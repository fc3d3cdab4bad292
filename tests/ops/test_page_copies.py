"""Copies that run at once: their rounds do what the copies do one after another; checks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import copy_pages_at_once, copy_pages_at_once_reference, copy_pages_reference
from ruprompt_fast.ops.page_copies import rounds_of

PAIRS = st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12)


@given(PAIRS)
def test_rounds_do_what_the_copies_do_in_order(pairs: list[tuple[int, int]]) -> None:
    copies = np.array(pairs, dtype=np.int32).reshape(-1, 2)
    actual = torch.arange(12.0).reshape(2, 6)
    expected = torch.arange(12.0).reshape(2, 6)
    for layer in expected:
        copy_pages_reference(layer, torch.from_numpy(copies))
    for copies_at_once in rounds_of(copies):
        copy_pages_at_once(actual, torch.from_numpy(copies_at_once))
    assert torch.equal(actual, expected)


@given(PAIRS)
def test_within_a_round_no_copy_sees_another(pairs: list[tuple[int, int]]) -> None:
    rounds = rounds_of(np.array(pairs).reshape(-1, 2))
    for copies_at_once in rounds:
        sources, destinations = copies_at_once.T.tolist()
        assert len(set(destinations)) == len(destinations)
        assert not set(sources) & set(destinations)
    made = [tuple(pair) for copies_at_once in rounds for pair in copies_at_once.tolist()]
    assert sorted(made) == sorted(pair for pair in pairs if pair[0] != pair[1])


def test_as_few_rounds_as_the_order_allows() -> None:
    assert rounds_of(np.zeros((0, 2), dtype=np.int32)) == []
    assert [len(pairs) for pairs in rounds_of(np.array([[0, 1], [0, 2], [3, 4], [5, 5]]))] == [3]
    assert [len(pairs) for pairs in rounds_of(np.array([[0, 1], [1, 2], [3, 4], [4, 1]]))] == [2, 1, 1]


@pytest.mark.parametrize("function", [copy_pages_at_once, copy_pages_at_once_reference])
def test_copies_that_do_not_fit(function) -> None:
    pages, copies = torch.zeros(2, 4, 3), torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(TensorArgumentError, match="int32 or int64, not .* of torch.float32"):
        function(pages, copies.float())
    with pytest.raises(TensorArgumentError, match=r"\[copies, 2\]"):
        function(pages, copies[0])
    with pytest.raises(TensorArgumentError, match=r"\[layers, pages, \.\.\.\]"):
        function(pages.transpose(0, 1), copies)
    with pytest.raises(TensorArgumentError, match="on cpu as the pages, not on meta"):
        function(pages, copies.to("meta"))
