"""The kernels that write and copy pages on the CPU; run by test_kernels_interpreted.py, or with TRITON_INTERPRET=1."""

from __future__ import annotations

import pytest
import torch
from ops.decode_cases import DTYPES
from torch import Tensor

from ruprompt_fast.ops import (
    copy_pages_at_once,
    copy_pages_at_once_reference,
    paged_decode,
    token_major_page_shapes,
    write_kv_token_major,
    write_kv_token_major_reference,
)


def check_write(key: Tensor, value: Tensor, slots: Tensor, num_pages: int) -> None:
    shapes = token_major_page_shapes(num_pages, key.shape[1], key.shape[2], value.shape[2])
    actual, expected = ([torch.full(shape, 7.0, dtype=key.dtype) for shape in shapes] for _ in range(2))
    write_kv_token_major(key, value, *actual, slots)
    write_kv_token_major_reference(key, value, *expected, slots)
    assert torch.equal(actual[0], expected[0])
    assert torch.equal(actual[1], expected[1])


def new_tokens(tokens: int, kv_heads: int, head_dim: int, value_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(tokens, kv_heads, head_dim).to(dtype),
        torch.randn(tokens, kv_heads, value_dim).to(dtype),
    )


@pytest.mark.parametrize(("dtype", "index"), [*zip(DTYPES, [torch.int64, torch.int32, torch.int64], strict=True)])
@pytest.mark.parametrize("tokens", [0, 1, 15, 16, 17, 31, 32, 33])
def test_a_run_of_slots(tokens: int, dtype: torch.dtype, index: torch.dtype) -> None:
    check_write(*new_tokens(tokens, 3, 8, 8, dtype), torch.arange(15, 15 + tokens, dtype=index), 3)


@pytest.mark.parametrize(("head_dim", "value_dim"), [(1, 1), (20, 7), (96, 96), (64, 256), (256, 64)])
@pytest.mark.parametrize("kv_heads", [1, 3, 16])
def test_heads_of_any_size(kv_heads: int, head_dim: int, value_dim: int) -> None:
    check_write(*new_tokens(2, kv_heads, head_dim, value_dim, torch.float16), torch.tensor([20, 3]), 2)


def test_slots_in_any_order_and_in_no_page() -> None:
    slots = torch.tensor([4097, -1, 0, 2**40, 4111, -(2**63), 4112, 15])
    check_write(*new_tokens(8, 2, 4, 4, torch.float32), slots, 257)


def test_any_strides_of_tokens_and_heads() -> None:
    slots = torch.arange(5, 13)
    key, value = new_tokens(8, 4, 16, 24, torch.float32)
    transposed = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (key, value)]
    fused = torch.cat([key.flatten(1), key.flatten(1), value.flatten(1)], 1)
    sliced = fused[:, 64:128].unflatten(1, (4, 16)), fused[:, 128:].unflatten(1, (4, 24))
    for views in (transposed, sliced, (key[:1].expand(8, 4, 16), value[:, :1].expand(8, 4, 24))):
        assert not views[0].is_contiguous()
        check_write(*views, slots, 2)


@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(1, 7), (2, 7, 1), (3, 7, 3, 5, 16), (2, 7, 2, 64, 33)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_copies(shape: tuple[int, ...], dtype: torch.dtype, index: torch.dtype) -> None:
    pages = torch.randint(-100, 100, shape).to(dtype)
    expected = pages.clone()
    copies = torch.tensor([[0, 1], [2, 3], [0, 6]], dtype=index)
    copy_pages_at_once(pages, copies)
    copy_pages_at_once_reference(expected, copies)
    assert torch.equal(pages, expected)
    copy_pages_at_once(pages, copies[:0])
    copy_pages_at_once(pages, torch.tensor([[0, 7], [-1, 2], [9, 9]], dtype=index))
    assert torch.equal(pages, expected)


def test_elements_beyond_two_to_the_31() -> None:
    # The system gives memory to what is written only, which is three pages.
    num_pages = 2**31 // (16 * 64) + 3
    pages = torch.empty(num_pages, 1, 16, 64, dtype=torch.float16)
    key, value = new_tokens(2, 1, 64, 64, torch.float16)
    pages[-1] = float("nan")
    write_kv_token_major(key, value, pages, pages, torch.arange(2) + (num_pages - 2) * 16)
    assert torch.equal(pages[-2, 0, :2], value[:, 0])
    copy_pages_at_once(pages[None], torch.tensor([[num_pages - 2, num_pages - 1]]))
    assert torch.equal(pages[-1], pages[-2])
    table, lens = torch.tensor([[num_pages - 1]], dtype=torch.int32), torch.tensor([1], dtype=torch.int32)
    assert torch.equal(paged_decode(key[:1], pages, pages, table, lens, scaling=1.0), value[:1])
