"""Attention over pages: equal to the reference for every shape, and the same bits whatever runs beside a row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.attention_cases import Case, Heads, Row, make_case, make_plan, tables_of
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.errors import PageIndexError, SettingError, TensorArgumentError
from ruprompt_fast.ops import AttentionPlan, paged_attention, paged_attention_reference
from ruprompt_fast.ops.cpu.paged_attention import AttentionTables, paged_attention_cpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
CONTEXTS = [1, 15, 16, 17, 31, 32, 33, 100]
HEADS = [(4, 4), (4, 2), (8, 1)]
DIMS = [(16, 16), (20, 20), (64, 64), (80, 80), (128, 128), (16, 37), (96, 5)]
MIXED = [Row(100, 40), Row(33), Row(16, 16), Row(1), Row(31, 8), Row(17, 2), Row(600, 3), Row(129), Row(32, 9)]


def attend(case: Case, **settings: float | int | None) -> Tensor:
    return paged_attention(*case.arguments, scaling=case.scaling, **settings)  # type: ignore[arg-type]


def check(case: Case, **settings: float | int | None) -> None:
    expected, summed = (
        paged_attention_reference(case.query, case.key_pages, values, case.plan, scaling=case.scaling, **settings)  # type: ignore[arg-type]
        for values in (case.value_pages, case.value_pages.abs())
    )
    assert_close(attend(case, **settings), expected, summed=summed)


@pytest.fixture
def threads() -> Iterator[None]:
    """Restores the number of threads that a test has changed."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize(("head_dim", "value_dim"), DIMS)
def test_decode_equals_the_reference(head_dim: int, value_dim: int, heads: int, kv_heads: int, dtype) -> None:
    check(make_case([Row(context) for context in CONTEXTS], Heads(heads, kv_heads, head_dim, value_dim), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
@pytest.mark.parametrize("softcap", [None, 1.5, 50.0])
@pytest.mark.parametrize("window", [None, 1, 16, 17, 1000])
def test_mixed_rows_equal_the_reference(window: int | None, softcap: float | None, heads, kv_heads, dtype) -> None:
    check(make_case(MIXED, Heads(heads, kv_heads), dtype), sliding_window=window, softcap=softcap)


@pytest.mark.parametrize("queries", range(1, 41))
def test_any_number_of_query_tokens(queries: int) -> None:
    check(make_case([Row(queries, queries), Row(queries + 23, queries)], Heads(8, 1)))


@pytest.mark.parametrize("kv_heads", [1, 3])
@pytest.mark.parametrize("size", range(1, 10))
def test_rows_that_share_a_prefix(size: int, kv_heads: int) -> None:
    prefix = [Row(70), *[Row(70 + 5 * r, 1 + r % 2, shared_pages=4) for r in range(size)]]
    other = [Row(40 + r, shared_pages=2) for r in range(size)]
    for window in (None, 50, 300):
        check(make_case([*prefix, Row(90), *other], Heads(3, kv_heads, 32, 32)), sliding_window=window)


def test_more_query_heads_than_a_tile() -> None:
    check(make_case([Row(50), Row(40, 3, shared_pages=2)], Heads(71, 1, 8, 8)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_scaling(dtype: torch.dtype) -> None:
    case = make_case(MIXED, dtype=dtype)
    for scaling in (-0.25, 0.0, 1e-4, 1.0):
        check(case._replace(scaling=scaling))
    # Scores in the thousands are known to a few thousandths only, but one of them always wins.
    assert bool(attend(case._replace(scaling=1000.0)).isfinite().all())


def test_strided_queries() -> None:
    case = make_case(MIXED, Heads(4, 2, 16, 16))
    expected = attend(case)
    transposed = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    fused = torch.cat([case.query.flatten(1), case.query.flatten(1)], dim=1)[:, 64:].view_as(case.query)
    for query in (transposed, fused):
        assert not query.is_contiguous()
        assert torch.equal(attend(case._replace(query=query)), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "kv_heads"), HEADS)
def test_a_row_alone_gives_the_same_bits(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    rows = [Row(70), *[Row(70 + 9 * r, 1 + r % 3, shared_pages=4) for r in range(9)], Row(1100, 3), Row(1200, 1, 60)]
    case = make_case(rows, Heads(heads, kv_heads, 64, 40), dtype)
    for window in (None, 33, 700):
        out = attend(case, sliding_window=window)
        for r, row in enumerate(rows):
            tokens = slice(int(case.plan.query_starts[r]), int(case.plan.query_starts[r + 1]))
            alone = case._replace(query=case.query[tokens], plan=make_plan([row], [tables_of(case, rows)[r]]))
            assert torch.equal(attend(alone, sliding_window=window), out[tokens])


def test_chunks_of_a_row_give_the_same_bits() -> None:
    rows = [Row(600, 600)]
    case = make_case(rows, Heads(4, 2, 32, 32))
    expected, table = attend(case), tables_of(case, rows)[0]
    for chunk in (1, 7, 64):
        for first in range(0, 600, chunk):
            end = min(first + chunk, 600)
            row = Row(end, end - first)
            part = case._replace(query=case.query[first:end], plan=make_plan([row], [table[: -(-end // 16)]]))
            assert torch.equal(attend(part), expected[first:end])


@pytest.mark.usefixtures("threads")
@pytest.mark.parametrize("rows", [[Row(1500)], [Row(513, 2)], [Row(700, 20), Row(2100, 1, 40)], MIXED], ids=len)
@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (8, 1), (12, 12)])
def test_the_number_of_threads_changes_no_bit(heads: int, kv_heads: int, rows: list[Row]) -> None:
    case = make_case(rows, Heads(heads, kv_heads, 64, 64))
    check(case)
    for window in (None, 600):
        results = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            results.append(attend(case, sliding_window=window))
        assert all(torch.equal(result, results[0]) for result in results)


def test_no_rows() -> None:
    assert attend(make_case([])).shape == (0, 4, 16)
    case = make_case([Row(20, 0), Row(17, 1), Row(0, 0), Row(5, 0)])
    assert attend(case).shape == (1, 4, 16)
    check(case)


@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_stays_in_its_row(dtype: torch.dtype) -> None:
    rows = [Row(40), Row(40, shared_pages=2), Row(30)]
    case = make_case(rows, dtype=dtype)
    expected = attend(case)
    page = tables_of(case, rows)[0][2]
    case.key_pages[page, :, 3, 2] = float("nan")
    out = attend(case)
    assert bool(out[0].isnan().all())
    assert torch.equal(out[1:], expected[1:])


def attend_with(case: Case, tables: AttentionTables, **settings: float | int | None) -> Tensor:
    return paged_attention_cpu(*case.arguments[:3], tables, scaling=case.scaling, **settings)  # type: ignore[arg-type]


def test_tables_made_once_serve_all_layers() -> None:
    case = make_case(MIXED)
    tables = AttentionTables(case.plan)
    assert tables.num_tokens == len(case.query)
    for window in (None, 20):
        expected = attend(case, sliding_window=window)
        assert torch.equal(attend_with(case, tables, sliding_window=window), expected)


def test_tables_are_a_copy_of_the_plan() -> None:
    case = make_case([Row(40), Row(33)])
    expected, tables = attend(case), AttentionTables(case.plan)
    case.plan.block_tables.fill_(-1)
    assert torch.equal(attend_with(case, tables), expected)
    with pytest.raises(PageIndexError, match=r"block_tables\[0, 0\] is -1"):
        attend(case)


def test_tables_of_arrays() -> None:
    case = make_case(MIXED)
    starts, lens, blocks = (part.numpy() for part in (case.plan.query_starts, case.plan.context_lens, wider(case)))
    width = case.plan.block_tables.shape[1]
    assert torch.equal(attend_with(case, AttentionTables.of(starts, lens, blocks[:, :width])), attend(case))
    with pytest.raises(TensorArgumentError, match="last dimension of block_tables must be contiguous"):
        AttentionTables.of(starts, lens, blocks[:, ::2])
    with pytest.raises(TensorArgumentError, match="context_lens must be int32 with 1 dimensions"):
        AttentionTables.of(starts, lens.astype(np.int64), blocks)
    with pytest.raises(TensorArgumentError, match="9 context_lens need 10 query_starts"):
        AttentionTables.of(starts[:-1], lens, blocks)


def wider(case: Case) -> Tensor:
    """The block tables with as many columns again after them, as in a scheduler's plan of full capacity."""
    return torch.cat([case.plan.block_tables, torch.full_like(case.plan.block_tables, -1)], dim=1)


@pytest.mark.parametrize("function", [paged_attention, paged_attention_reference])
def test_arguments_that_do_not_fit(function) -> None:
    query, keys, values, plan = make_case([Row(20), Row(33, 2)]).arguments

    def call(q: Tensor = query, k: Tensor = keys, v: Tensor = values, p: AttentionPlan = plan, **settings) -> None:
        function(q, k, v, p, scaling=0.25, **settings)

    with pytest.raises(TensorArgumentError, match=r"query must be \[3, a multiple of 2 heads, 16\]"):
        call(q=query[:2])
    with pytest.raises(TensorArgumentError, match="a multiple of 2 heads"):
        call(q=query[:, :3])
    with pytest.raises(TensorArgumentError, match="query must be torch.float32 on the CPU"):
        call(q=query.half())
    with pytest.raises(TensorArgumentError, match="last dimension of query"):
        call(q=query.transpose(1, 2).contiguous().transpose(1, 2))
    with pytest.raises(TensorArgumentError, match="see kv_page_shapes"):
        call(k=keys[..., :15])
    with pytest.raises(TensorArgumentError, match="as many pages and heads"):
        call(k=keys[:-1])
    with pytest.raises(TensorArgumentError, match="one dtype"):
        call(v=values.double())
    with pytest.raises(TensorArgumentError, match="contiguous"):
        call(v=values.transpose(0, 1).contiguous().transpose(0, 1))
    with pytest.raises(TensorArgumentError, match="runs on the CPU; the pages are on meta"):
        call(k=keys.to("meta"), v=values.to("meta"))
    with pytest.raises(SettingError, match="sliding_window is 0"):
        call(sliding_window=0)
    with pytest.raises(SettingError, match="softcap is -1"):
        call(softcap=-1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"query_starts": torch.tensor([1, 1, 3]).int()}, "begins with 1, not 0"),
        ({"query_starts": torch.tensor([0, 4, 3]).int()}, "decreases after row 1"),
        ({"context_lens": torch.tensor([20, 1]).int()}, "row 1 has 2 query tokens but a context of 1"),
        ({"context_lens": torch.tensor([20, 200]).int()}, "200 tokens, 13 pages, but block_tables is 4 wide"),
        ({"context_lens": torch.tensor([20]).int()}, "1 context_lens need 2 query_starts and 1 block_tables"),
        ({"context_lens": torch.tensor([20, 33])}, "context_lens must be int32"),
        ({"block_tables": torch.zeros(2, 4, 1).int()}, "block_tables must be int32 with 2 dimensions"),
        ({"block_tables": torch.zeros(4, 2).int().T}, "last dimension of block_tables must be contiguous"),
    ],
)
def test_plans_that_contradict_themselves(fields: dict[str, Tensor], message: str) -> None:
    case = make_case([Row(20), Row(33, 2)])
    with pytest.raises(TensorArgumentError, match=message):
        attend(case._replace(plan=replace(case.plan, **fields)))


@pytest.mark.parametrize("function", [paged_attention, paged_attention_reference])
@pytest.mark.parametrize("page", [-1, 7, 2**31 - 1])
def test_a_page_that_does_not_exist(page: int, function) -> None:
    case = make_case([Row(20), Row(33, 2)])
    assert case.key_pages.shape[0] == 6
    tables = case.plan.block_tables.clone()
    tables[1, 2] = page
    with pytest.raises(PageIndexError, match="page does not exist"):
        function(*case.arguments[:3], replace(case.plan, block_tables=tables), scaling=0.25)


@st.composite
def plans(draw: st.DrawFn) -> tuple[Case, dict[str, float | int | None]]:
    rows: list[Row] = []
    for _ in range(draw(st.integers(0, 9))):
        context = draw(st.one_of(st.sampled_from(CONTEXTS), st.integers(0, 300)))
        full = min(context, rows[-1].context) // 16 if rows else 0
        rows.append(Row(context, draw(st.integers(0, min(context, 20))), draw(st.integers(0, full))))
    kv_heads = draw(st.integers(1, 3))
    shape = Heads(kv_heads * draw(st.integers(1, 5)), kv_heads, draw(st.integers(1, 40)), draw(st.integers(1, 70)))
    keywords: dict[str, float | int | None] = {
        "sliding_window": draw(st.none() | st.integers(1, 200)),
        "softcap": draw(st.none() | st.floats(0.5, 60)),
    }
    return make_case(rows, shape, draw(st.sampled_from(DTYPES)), draw(st.integers(0, 99))), keywords


@settings(max_examples=150)
@given(plans())
def test_any_plan_equals_the_reference(drawn: tuple[Case, dict[str, float | int | None]]) -> None:
    case, keywords = drawn
    check(case, **keywords)
