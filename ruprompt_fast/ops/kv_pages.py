"""Keys and values in pages of 16 tokens: their layout, writing new tokens, copying pages.

A *slot* is the place of one token: ``page * PAGE_SIZE + place in the page``. Keys lie with the tokens of a page side by
side, so that one vector of 16 lanes holds one dimension of all of them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.errors import PageIndexError, TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES

# Tokens per page.
PAGE_SIZE = 16

KV_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def kv_page_shapes(
    num_pages: int, num_kv_heads: int, head_dim: int, value_dim: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """The shapes of one layer's pages.

    Returns:
        ``[num_pages, num_kv_heads, head_dim, PAGE_SIZE]`` of the keys and
        ``[num_pages, num_kv_heads, PAGE_SIZE, value_dim]`` of the values.
    """
    return (num_pages, num_kv_heads, head_dim, PAGE_SIZE), (num_pages, num_kv_heads, PAGE_SIZE, value_dim)


def check_pages(key_pages: Tensor, value_pages: Tensor) -> None:
    """Raises :class:`TensorArgumentError` unless both are contiguous CPU pages that belong together."""
    key_shape, value_shape = key_pages.shape, value_pages.shape
    if len(key_shape) != 4 or len(value_shape) != 4 or key_shape[3] != PAGE_SIZE or value_shape[2] != PAGE_SIZE:
        raise TensorArgumentError(
            f"pages must be [pages, kv_heads, head_dim, {PAGE_SIZE}] for keys and [pages, kv_heads, {PAGE_SIZE}, "
            f"value_dim] for values, not {list(key_shape)} and {list(value_shape)}: see kv_page_shapes"
        )
    if key_shape[0] != value_shape[0] or key_shape[1] != value_shape[1]:
        raise TensorArgumentError(
            f"key and value pages must have as many pages and heads, not {list(key_shape)} and {list(value_shape)}"
        )
    dtype = key_pages.dtype
    if dtype not in KV_DTYPES or value_pages.dtype is not dtype:
        raise TensorArgumentError(
            f"key and value pages must have one dtype of float32, bfloat16, float16, not {dtype} and "
            f"{value_pages.dtype}"
        )
    if not (key_pages.is_cpu and value_pages.is_cpu):
        raise TensorArgumentError(
            f"paged attention runs on the CPU; the pages are on {key_pages.device} and {value_pages.device}"
        )
    if not (key_pages.is_contiguous() and value_pages.is_contiguous()):
        raise TensorArgumentError("pages must be contiguous")


def write_kv(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    """Writes the keys and values of new tokens into their slots.

    Semantics::

        page, place = write_slots // 16, write_slots % 16
        key_pages[page, :, :, place] = key
        value_pages[page, :, place] = value

    Args:
        key: ``[tokens, kv_heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        value: ``[tokens, kv_heads, value_dim]``, likewise.
        key_pages: ``[pages, kv_heads, head_dim, 16]``, contiguous; float32, bfloat16 or float16, as all four.
        value_pages: ``[pages, kv_heads, 16, value_dim]``, contiguous.
        write_slots: ``[tokens]``, int64, contiguous; no slot twice, or any of its tokens may win.

    Raises:
        PageIndexError: a slot lies in no page; nothing is written.
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
    """
    _check_write(key, value, key_pages, value_pages, write_slots)
    num_pages, kv_heads, head_dim, _ = key_pages.shape
    key_token_stride, key_head_stride, _ = key.stride()
    value_token_stride, value_head_stride, _ = value.stride()
    bad = _C.write_kv(
        key.data_ptr(),
        key_token_stride,
        key_head_stride,
        head_dim,
        value.data_ptr(),
        value_token_stride,
        value_head_stride,
        value_pages.shape[3],
        key_pages.data_ptr(),
        value_pages.data_ptr(),
        num_pages,
        kv_heads,
        key_pages.element_size(),
        write_slots.data_ptr(),
        write_slots.shape[0],
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise _slot_error(write_slots, bad, num_pages)


def write_kv_reference(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    """:func:`write_kv` in plain PyTorch: two indexed assignments."""
    _check_write(key, value, key_pages, value_pages, write_slots)
    bad = ((write_slots < 0) | (write_slots >= key_pages.shape[0] * PAGE_SIZE)).nonzero()
    if bad.numel():
        raise _slot_error(write_slots, int(bad[0]), key_pages.shape[0])
    page, place = write_slots // PAGE_SIZE, write_slots % PAGE_SIZE
    key_pages[page, :, :, place] = key
    value_pages[page, :, place] = value


def copy_pages(pages: Tensor, copies: Tensor) -> None:
    """Copies whole pages over others, one pair after another.

    Semantics::

        for source, destination in copies.tolist():
            pages[destination] = pages[source]

    Args:
        pages: ``[pages, ...]``, contiguous, any dtype.
        copies: ``[copies, 2]``, int32 or int64, contiguous: (source page, destination page).

    Raises:
        PageIndexError: a page does not exist; nothing is written.
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
    """
    _check_copies(pages, copies)
    if copies.shape[0] == 0:
        return
    bad = _C.copy_pages(
        pages.data_ptr(),
        pages.shape[0],
        pages.stride(0) * pages.element_size(),
        copies.data_ptr(),
        copies.element_size(),
        copies.shape[0],
        torch.get_num_threads(),
    )
    if bad >= 0:
        raise _copy_error(copies, bad, pages.shape[0])


def copy_pages_reference(pages: Tensor, copies: Tensor) -> None:
    """:func:`copy_pages` in plain PyTorch, a page at a time."""
    _check_copies(pages, copies)
    bad = ((copies < 0) | (copies >= pages.shape[0])).reshape(-1).nonzero()
    if bad.numel():
        raise _copy_error(copies, int(bad[0]), pages.shape[0])
    for source, destination in copies.tolist():
        pages[destination] = pages[source]


def _check_write(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    check_pages(key_pages, value_pages)
    _, kv_heads, head_dim, _ = key_pages.shape
    tokens, value_dim = write_slots.shape[0] if write_slots.dim() else 0, value_pages.shape[3]
    if key.shape != (tokens, kv_heads, head_dim) or value.shape != (tokens, kv_heads, value_dim):
        raise TensorArgumentError(
            f"key and value must be {[tokens, kv_heads, head_dim]} and {[tokens, kv_heads, value_dim]} for these slots "
            f"and pages, not {list(key.shape)} and {list(value.shape)}"
        )
    dtype = key_pages.dtype
    if key.dtype is not dtype or value.dtype is not dtype:
        raise TensorArgumentError(
            f"key and value must have the pages' dtype {DTYPE_NAMES[dtype]}, not {key.dtype} and {value.dtype}"
        )
    if write_slots.dtype is not torch.int64 or write_slots.dim() != 1 or not write_slots.is_contiguous():
        raise TensorArgumentError(
            f"write_slots must be [tokens], int64 and contiguous, not {list(write_slots.shape)} of {write_slots.dtype}"
        )
    if not (key.is_cpu and value.is_cpu and write_slots.is_cpu):
        raise TensorArgumentError(
            f"key, value and write_slots must be on the CPU, as the pages are, not on {key.device}, {value.device} and "
            f"{write_slots.device}"
        )
    if (key.stride(2) != 1 and head_dim > 1) or (value.stride(2) != 1 and value_dim > 1):
        raise TensorArgumentError(
            f"the last dimension of key and value must be contiguous, but their strides are {key.stride()} and "
            f"{value.stride()}"
        )


def _check_copies(pages: Tensor, copies: Tensor) -> None:
    if copies.dtype is not torch.int32 and copies.dtype is not torch.int64:
        raise TensorArgumentError(f"copies must be int32 or int64, not {copies.dtype}")
    if copies.dim() != 2 or copies.shape[1] != 2 or not copies.is_contiguous():
        raise TensorArgumentError(f"copies must be [copies, 2] and contiguous, not {list(copies.shape)}")
    if pages.dim() == 0 or not pages.is_contiguous():
        raise TensorArgumentError(f"pages must be [pages, ...] and contiguous, not {list(pages.shape)}")
    if not (pages.is_cpu and copies.is_cpu):
        raise TensorArgumentError(f"pages are copied on the CPU, but they are on {pages.device}, {copies.device}")


def _slot_error(write_slots: Tensor, position: int, num_pages: int) -> PageIndexError:
    return PageIndexError(
        f"slot {int(write_slots[position])} at position {position} of write_slots lies in no page: "
        f"{num_pages} pages have the slots 0..{num_pages * PAGE_SIZE - 1}"
    )


def _copy_error(copies: Tensor, position: int, num_pages: int) -> PageIndexError:
    return PageIndexError(
        f"page {int(copies.reshape(-1)[position])} in row {position // 2} of copies does not exist: "
        f"the pages are 0..{num_pages - 1}"
    )
