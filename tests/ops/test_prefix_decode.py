"""Decoding after shared prefixes: the reference, the search for prefixes, the rule, checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ops.attention_cases import Heads
from ops.decode_cases import DTYPES
from ops.prefix_cases import Group, make_prefix_case
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.ops import paged_decode_reference, prefix_decode, prefix_decode_reference
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.prefix_rule import prefix_decode_pays
from ruprompt_fast.ops.prefix_decode import SharedPrefixes, shared_prefix_groups

GROUPS = [Group(32, (33, 60, 47)), Group(0, (5, 0, 17)), Group(16, (16, 300)), Group(0, ()), Group(48, (100,))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"sliding_window": 20}, {"softcap": 1.5, "sliding_window": 100}], ids=str)
def test_reference(dtype: torch.dtype, settings: dict) -> None:
    case = make_prefix_case(GROUPS, Heads(4, 2, 16, 24), dtype, padding=2)
    expected = case.run_alone(paged_decode_reference, **settings)
    assert torch.equal(case.run(prefix_decode_reference, **settings), expected)
    assert torch.equal(case.run(prefix_decode, **settings), expected)
    assert not expected[-2:].any()


def test_a_group_reads_the_pages_of_its_first_row() -> None:
    case = make_prefix_case([Group(32, (40, 40, 40))])
    expected = case.run(prefix_decode)
    case.block_tables[1:, :2] = 10**6
    assert torch.equal(case.run(prefix_decode), expected)


def test_without_groups_it_is_decoding() -> None:
    case = make_prefix_case([Group(0, (20, 3))])
    alone = case._replace(group_starts=torch.zeros(1, dtype=torch.int32), prefix_lens=case.context_lens)
    assert_close(alone.run(prefix_decode), case.run_alone(paged_decode_reference))
    assert make_prefix_case([]).run(prefix_decode).shape == (0, 4, 16)


@pytest.mark.parametrize("function", [prefix_decode, prefix_decode_reference])
def test_arguments_that_do_not_fit(function: Any) -> None:
    query, keys, values, tables, lens, starts, prefixes, _ = make_prefix_case([Group(16, (20, 33))])

    def call(
        q: Tensor = query,
        k: Tensor = keys,
        t: Tensor = tables,
        c: Tensor = lens,
        s: Tensor = starts,
        p: Tensor = prefixes,
        **settings: Any,
    ) -> None:
        function(q, k, values, t, c, s, p, scaling=0.25, **settings)

    for message, arguments in [
        ("a multiple of 2 heads", {"q": query[:, :3]}),
        ("equal but for the last number", {"k": keys[:-1]}),
        (r"block_tables must be int32 \[2, 4\]", {"t": tables[:1]}),
        (r"context_lens must be int32 \[2\]", {"c": lens.long()}),
        (r"prefix_lens must be int32 \[2\]", {"p": prefixes[:1]}),
        (r"group_starts must be int32 \[1\]", {"s": starts[:0]}),
        (r"group_starts must be int32 \[2\]", {"s": starts[None]}),
        ("on cpu; found torch.int32 .* on meta", {"s": starts.to("meta")}),
    ]:
        with pytest.raises(TensorArgumentError, match=message):
            call(**arguments)
    with pytest.raises(SettingError, match="sliding_window must be at least 1"):
        call(sliding_window=0)


def groups_by_loops(tables: list[list[int]], contexts: list[int], page_size: int, least: int) -> tuple[list, list]:
    """The groups' starts and the rows' prefixes, a row after another."""
    shared = []
    for row in range(len(tables) - 1):
        count = 0
        limit = min(contexts[row], contexts[row + 1]) // page_size
        while count < limit and tables[row][count] == tables[row + 1][count]:
            count += 1
        shared.append(count * page_size)
    groups: list[list[int]] = []
    for row in range(len(tables)):
        before = shared[row - 1] if row else 0
        around = max([*shared[max(row - 2, 0) : row - 1], *shared[row : row + 1], 0])
        if before and before >= least and 2 * before >= around:
            groups[-1].append(row)
        else:
            groups.append([row])
    starts: list[int] = []
    prefixes: list[int] = []
    for group in groups:
        prefix = min((shared[row] for row in group[:-1]), default=0)
        if prefix or not starts or prefixes[-1]:
            starts.append(group[0])
        prefixes += [prefix] * len(group)
    return [*starts, len(tables)], prefixes


@st.composite
def rows_of_pages(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    rows, blocks = draw(st.integers(1, 12)), draw(st.integers(0, 6))
    tables = draw(st.lists(st.lists(st.integers(0, 1), min_size=blocks, max_size=blocks), min_size=rows, max_size=rows))
    contexts = draw(st.lists(st.integers(0, blocks * 4), min_size=rows, max_size=rows))
    return tables, contexts


@given(rows_of_pages(), st.integers(0, 16))
def test_prefixes_are_those_that_loops_find(rows: tuple[list[list[int]], list[int]], least: int) -> None:
    tables, contexts = rows
    found = shared_prefix_groups(
        np.array(tables, np.int32).reshape(len(contexts), -1), np.array(contexts, np.int32), 4, least_tokens=least
    )
    starts, prefixes = groups_by_loops(tables, contexts, 4, least)
    assert (found.group_starts.tolist(), found.prefix_lens.tolist()) == (starts, prefixes)
    assert found.group_starts.dtype == found.prefix_lens.dtype == np.int32
    assert found.saved_tokens == sum(prefixes) - sum(prefixes[start] for start in starts[:-1])


def test_no_rows_share_no_prefix() -> None:
    found = shared_prefix_groups(np.zeros((0, 3), np.int32), np.zeros(0, np.int32), 16)
    assert found.group_starts.tolist() == [0]
    assert found.prefix_lens.tolist() == []
    assert found.saved_tokens == 0


def test_prompts_next_to_each_other() -> None:
    tables = np.array([[1, 2, 3, 9], [1, 2, 3, 8], [1, 2, 3, 7], [4, 5, 0, 0], [4, 6, 0, 0], [11, 0, 0, 0]], np.int32)
    found = shared_prefix_groups(tables, np.array([50, 51, 64, 32, 32, 0], np.int32), 16, least_tokens=32)
    assert found.group_starts.tolist() == [0, 3, 6]
    assert found.prefix_lens.tolist() == [48, 48, 48, 0, 0, 0]
    assert found.saved_tokens == 96


def test_the_rule() -> None:
    def one_prefix(rows: int, tokens: int) -> SharedPrefixes:
        return SharedPrefixes(np.array([0, rows], np.int32), np.full(rows, tokens, np.int32))

    # ruGPT-3 Large in half precision: 16 heads of 96.
    sizes = {"token_bytes": 16 * 192 * 2, "row_bytes": 16 * 96 * 4}
    h100, k80 = Card("H100", (9, 0)), Card("K80", (3, 7))
    assert prefix_decode_pays(one_prefix(64, 96), **sizes, card=h100)
    assert prefix_decode_pays(one_prefix(32, 96), **sizes, card=V100)
    for pays_nowhere in (one_prefix(1, 4096), one_prefix(2, 96), one_prefix(64, 0)):
        assert not any(prefix_decode_pays(pays_nowhere, **sizes, card=card) for card in (V100, h100, k80))
    assert not prefix_decode_pays(one_prefix(64, 4096), **sizes, card=k80)
    assert not prefix_decode_pays(one_prefix(16, 96), **sizes, card=h100)
