"""Writing keys and values into pages, copying pages: bitwise identical to the reference, errors that name the slot."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ruprompt_fast.errors import PageIndexError, TensorArgumentError
from ruprompt_fast.ops import (
    copy_pages,
    copy_pages_reference,
    kv_page_shapes,
    write_kv,
    write_kv_reference,
)
from ruprompt_fast.ops.cpu.kv_pages import PAGE_SIZE

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def make_pages(
    num_pages: int, kv_heads: int, head_dim: int, value_dim: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    keys, values = kv_page_shapes(num_pages, kv_heads, head_dim, value_dim)
    return torch.full(keys, 7.0, dtype=dtype), torch.full(values, 7.0, dtype=dtype)


def check_write(key: Tensor, value: Tensor, slots: Tensor, num_pages: int) -> None:
    shape = (num_pages, key.shape[1], key.shape[2], value.shape[2])
    actual, expected = make_pages(*shape, key.dtype), make_pages(*shape, key.dtype)
    write_kv(key, value, *actual, slots)
    write_kv_reference(key, value, *expected, slots)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def new_tokens(tokens: int, kv_heads: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(tokens)
    key = torch.randn(tokens, kv_heads, head_dim, generator=generator)
    return key.to(dtype), torch.randn(tokens, kv_heads, value_dim, generator=generator).to(dtype)


def test_shapes_put_the_tokens_of_a_page_side_by_side_in_keys() -> None:
    assert kv_page_shapes(9, 3, 64, 80) == ((9, 3, 64, 16), (9, 3, 16, 80))
    assert PAGE_SIZE == 16


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(16, 16), (20, 7), (64, 64), (1, 1), (128, 80)])
@pytest.mark.parametrize("first", [0, 1, 15])
@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 31, 32, 33, 100])
def test_a_run_of_slots(tokens: int, first: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    key, value = new_tokens(tokens, 3, head_dim, value_dim, dtype)
    check_write(key, value, torch.arange(first, first + tokens), 9)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens", [1, 33, 500])
def test_slots_in_any_order(tokens: int, dtype: torch.dtype) -> None:
    slots = torch.randperm(40 * PAGE_SIZE, generator=torch.Generator().manual_seed(0))[:tokens]
    check_write(*new_tokens(tokens, 4, 64, 64, dtype), slots, 40)


def test_any_strides_of_tokens_and_heads() -> None:
    slots = torch.arange(5, 45)
    key, value = new_tokens(40, 4, 16, 24, torch.float32)
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (key, value)]
    fused = torch.cat([key.flatten(1), key.flatten(1), value.flatten(1)], 1)
    sliced = fused[:, 64:128].unflatten(1, (4, 16)), fused[:, 128:].unflatten(1, (4, 24))
    for views in (transposed, sliced, (key[:1].expand(40, 4, 16), value[:, :1].expand(40, 4, 24))):
        assert not views[0].is_contiguous()
        check_write(*views, slots, 3)


@pytest.mark.parametrize("function", [write_kv, write_kv_reference])
@pytest.mark.parametrize("bad", [-1, 48, -(2**63), 2**63 - 1])
def test_a_slot_in_no_page_is_named_and_nothing_is_written(function, bad: int) -> None:
    key, value = new_tokens(5, 2, 4, 4, torch.float32)
    pages = make_pages(3, 2, 4, 4, torch.float32)
    with pytest.raises(PageIndexError, match=rf"slot {bad} at position 3 .* 3 pages have the slots 0\.\.47"):
        function(key, value, *pages, torch.tensor([0, 1, 2, bad, -5]))
    assert all(bool((page == 7).all()) for page in pages)


@pytest.mark.parametrize("function", [write_kv, write_kv_reference])
def test_arguments_that_do_not_fit(function) -> None:
    key, value = new_tokens(5, 2, 4, 6, torch.float32)
    keys, values = make_pages(3, 2, 4, 6, torch.float32)
    slots = torch.arange(5)
    with pytest.raises(TensorArgumentError, match=r"\[5, 2, 4\] and \[5, 2, 6\] .* not \[5, 1, 4\]"):
        function(key[:, :1], value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="for these slots and pages"):
        function(key, value, keys, values, slots[:4])
    with pytest.raises(TensorArgumentError, match="pages' dtype float32, not torch.float16"):
        function(key.half(), value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="int64 and contiguous"):
        function(key, value, keys, values, slots.int())
    with pytest.raises(TensorArgumentError, match="last dimension"):
        function(key.transpose(1, 2).contiguous().transpose(1, 2), value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="on the CPU, as the pages are, not on meta"):
        function(key.to("meta"), value, keys, values, slots)
    with pytest.raises(TensorArgumentError, match="runs on the CPU"):
        function(key, value, keys.to("meta"), values.to("meta"), slots)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize(
    "shape", [(7,), (7, 1), (7, 3, 5, 16), (7, 12, 64, 16)], ids=lambda shape: "x".join(map(str, shape))
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8])
def test_copies_run_one_after_another(shape: tuple[int, ...], dtype: torch.dtype, index: torch.dtype) -> None:
    pages = torch.randint(-100, 100, shape).to(dtype)
    expected = pages.clone()
    copies = torch.tensor([[0, 1], [1, 2], [2, 0], [6, 3], [4, 4]], dtype=index)
    copy_pages(pages, copies)
    copy_pages_reference(expected, copies)
    assert torch.equal(pages, expected)
    copy_pages(pages, copies[:0])
    assert torch.equal(pages, expected)


@given(st.lists(st.tuples(st.integers(-1, 4), st.integers(-1, 4)), max_size=8))
def test_any_copies_equal_the_reference_or_fail_alike(pairs: list[tuple[int, int]]) -> None:
    copies = torch.tensor(pairs, dtype=torch.int32).reshape(-1, 2)
    results = []
    for function in (copy_pages, copy_pages_reference):
        pages = torch.arange(12.0).reshape(4, 3)
        try:
            function(pages, copies)
            results.append(pages.tolist())
        except PageIndexError as error:
            assert torch.equal(pages, torch.arange(12.0).reshape(4, 3))
            results.append(str(error))
    assert results[0] == results[1]


@pytest.mark.parametrize("function", [copy_pages, copy_pages_reference])
def test_copies_that_do_not_fit(function) -> None:
    pages, copies = torch.zeros(4, 3), torch.zeros(2, 2, dtype=torch.int32)
    with pytest.raises(PageIndexError, match=r"page 4 in row 1 of copies does not exist: the pages are 0\.\.3"):
        function(pages, torch.tensor([[0, 1], [2, 4]]))
    with pytest.raises(TensorArgumentError, match="int32 or int64, not torch.float32"):
        function(pages, copies.float())
    with pytest.raises(TensorArgumentError, match=r"\[copies, 2\]"):
        function(pages, copies[0])
    with pytest.raises(TensorArgumentError, match=r"\[pages, \.\.\.\] and contiguous"):
        function(pages.T, copies)
    with pytest.raises(TensorArgumentError, match="on the CPU"):
        function(pages.to("meta"), copies)
