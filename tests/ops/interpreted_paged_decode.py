"""The kernels of decoding on the CPU; run by test_kernels_interpreted.py, or by hand with TRITON_INTERPRET=1."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.attention_cases import Heads
from ops.decode_cases import BORDERS, DTYPES, DecodeCase, make_decode_case
from tolerances import assert_close
from torch import Tensor

from ruprompt_fast.ops import paged_decode, paged_decode_reference
from ruprompt_fast.ops.cuda.cards import V100, Card
from ruprompt_fast.ops.cuda.paged_decode import (
    decode_parts,
    merge_parts,
    new_parts,
    num_decode_parts,
    paged_decode_cuda,
)

A100 = Card("A100", (8, 0))


def check(case: DecodeCase, function: Callable[..., Tensor] = paged_decode, **settings: float | int | None) -> None:
    """Against the reference; rounding is measured against the magnitudes of the values that are summed."""
    summed = case._replace(value_pages=case.value_pages.abs()).run(paged_decode_reference, **settings)
    assert_close(case.run(function, **settings), case.run(paged_decode_reference, **settings), summed=summed)


@pytest.mark.parametrize("dtype", DTYPES)
def test_page_borders(dtype: torch.dtype) -> None:
    check(make_decode_case([*BORDERS, 47], Heads(2, 1, 8, 8), dtype))


@pytest.mark.parametrize("head_dim", [16, 32, 64, 80, 96, 128, 256])
def test_head_sizes(head_dim: int) -> None:
    check(make_decode_case([33, 70], Heads(1, 1, head_dim, head_dim), torch.float16))


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 2), (4, 1), (5, 1), (9, 1)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_that_share_keys(heads: int, kv_heads: int, dtype: torch.dtype) -> None:
    check(make_decode_case([17, 0], Heads(heads, kv_heads, 16, 16), dtype))


@pytest.mark.parametrize(("heads", "head_dim", "value_dim"), [(5, 8, 16), (16, 96, 64), (17, 20, 256)])
def test_tensor_cores(heads: int, head_dim: int, value_dim: int) -> None:
    # In float16 only: Triton 3.7's interpreter multiplies the bits of bfloat16.
    case = make_decode_case([17, 300], Heads(heads, 1, head_dim, value_dim), torch.float16)
    for settings_ in ({}, {"sliding_window": 50, "softcap": 2.0}):
        check(case, partial(paged_decode_cuda, card=A100), **settings_)


def test_values_of_another_size() -> None:
    check(make_decode_case([20, 40], Heads(2, 1, 5, 37)))
    check(make_decode_case([20, 40], Heads(2, 2, 48, 8), torch.float16))


@pytest.mark.parametrize("softcap", [None, 1.5, 50.0])
@pytest.mark.parametrize("window", [1, 16, 17, 300, 2**40])
def test_window_and_soft_cap(window: int, softcap: float | None) -> None:
    check(make_decode_case([1, 17, 270, 600], Heads(2, 1, 32, 32)), sliding_window=window, softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_long_row_beside_short_ones(dtype: torch.dtype) -> None:
    check(make_decode_case([4097, 0, 256, 257], Heads(1, 1, 8, 8), dtype))


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=2),
    st.builds(lambda kv, group, k, v: Heads(kv * group, kv, k, v), *[st.integers(1, n) for n in (2, 5, 40, 40)]),
    st.none() | st.integers(1, 400),
    st.none() | st.floats(0.1, 100),
    st.sampled_from([V100, A100]),
)
def test_any_shape(contexts: list[int], shape: Heads, window: int | None, softcap: float | None, card: Card) -> None:
    case = make_decode_case(contexts, shape, torch.float16)
    check(case, partial(paged_decode_cuda, card=card), sliding_window=window, softcap=softcap)


def test_any_strides_of_queries() -> None:
    case = make_decode_case([40, 3, 17])
    expected = case.run(paged_decode)
    fused = torch.cat([case.query, case.query], 1)[:, 4:]
    transposed = case.query.transpose(0, 1).contiguous().transpose(0, 1)
    for query in (fused, transposed):
        assert not query.is_contiguous()
        assert torch.equal(case._replace(query=query).run(paged_decode), expected)


def test_padding_gives_zeros() -> None:
    assert not make_decode_case([0, 0], blocks=0).run(paged_decode).any()
    for blocks in (1, 17):
        assert not make_decode_case([0], blocks=blocks).run(paged_decode).any()
    assert make_decode_case([]).run(paged_decode).shape == (0, 4, 16)


def test_neither_other_rows_nor_wide_tables_change_a_bit() -> None:
    case = make_decode_case([300, 40], blocks=20)
    out = case.run(paged_decode)
    for blocks, row in ((19, 0), (50, 0), (3, 1), (16, 1)):
        alone = case._replace(
            query=case.query[row : row + 1],
            context_lens=case.context_lens[row : row + 1],
            block_tables=torch.nn.functional.pad(case.block_tables[row : row + 1], (0, 30), value=-1)[:, :blocks],
        )
        assert torch.equal(alone.run(paged_decode), out[row : row + 1])


@pytest.mark.parametrize("pages", ["key_pages", "value_pages"])
def test_nan_stays_in_its_row(pages: str) -> None:
    case = make_decode_case([300, 40, 290])
    expected = case.run(paged_decode)
    getattr(case, pages)[case.block_tables[0, 17], :, 3, 2] = float("nan")
    out = case.run(paged_decode)
    assert bool((out[0] if pages == "key_pages" else out[0, :, 2]).isnan().all())
    assert torch.equal(out[1:], expected[1:])


@pytest.mark.parametrize("card", [V100, A100], ids=lambda card: card.name)
def test_parts_from_a_first_token_on(card: Card) -> None:
    contexts, first = [300, 40, 16, 0], torch.tensor([260, 7, 16, 5], dtype=torch.int32)
    case = make_decode_case(contexts, Heads(5, 1, 16, 16), torch.float16)
    parts = num_decode_parts(case.key_pages, case.block_tables)
    assert parts == 2
    partials, lse = new_parts(case.query, parts, 16)
    partials.fill_(float("nan"))
    decode_parts(*case.arguments, partials, lse, scaling=case.scaling, first_tokens=first, card=card)
    assert bool((lse[0, 0] == float("-inf")).all())
    out = torch.empty_like(case.query)
    merge_parts(partials, lse, out)
    for row, begin in enumerate(first.tolist()):
        seen = max(contexts[row] - begin, 0)
        expected = case.run(paged_decode_reference, sliding_window=max(seen, 1))[row]
        assert_close(out[row], expected if seen else torch.zeros_like(expected))


# Without bfloat16, which Triton 3.7's interpreter cuts off: one number may be a unit in the last place away.
@settings(max_examples=20, deadline=None)
@given(st.integers(1, 20), st.integers(1, 3), st.integers(1, 70), st.integers(0, 2**32), st.sampled_from(DTYPES[:2]))
def test_any_number_of_parts_is_merged(parts: int, rows: int, dim: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    partials = torch.randn(parts, rows, 2, dim, generator=generator)
    lse = torch.randn(parts, rows, 2, generator=generator) * 30
    empty = torch.rand(parts, rows, 2, generator=generator) < 0.5
    lse[empty] = float("-inf")
    weights = torch.nan_to_num(lse.double().softmax(0))
    expected = (weights[..., None] * partials).sum(0).to(dtype)
    summed = (weights[..., None] * partials.abs()).sum(0)
    partials[empty] = float("nan")
    out = torch.empty(rows, 2, dim, dtype=dtype)
    merge_parts(partials, lse, out)
    assert_close(out, expected, summed=summed)
