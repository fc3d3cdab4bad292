"""Keys and values in pages: writing new tokens, copying pages.

A *slot* is the place of one token: ``page * page_size + place in the page``. How a page lies in memory is the matter of
the device's implementation, which gives views of its pages ``by_token``: ``[pages, page_size, kv_heads, dim]``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES
from ruprompt_fast.ops._errors import copy_error, slot_error
from ruprompt_fast.ops.cpu.kv_pages import by_token, check_pages, copy_pages_cpu, write_kv_cpu


def write_kv(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    """Writes the keys and values of new tokens into their slots.

    Semantics::

        keys, values = by_token(key_pages, value_pages)
        page, place = write_slots // page_size, write_slots % page_size
        keys[page, place] = key
        values[page, place] = value

    Args:
        key: ``[tokens, kv_heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        value: ``[tokens, kv_heads, value_dim]``, likewise.
        key_pages: of the shape that :func:`~ruprompt_fast.ops.kv_page_shapes` gives, contiguous; float32, bfloat16 or
            float16, as all four.
        value_pages: likewise.
        write_slots: ``[tokens]``, int64, contiguous; no slot twice, or any of its tokens may win.

    Raises:
        PageIndexError: a slot lies in no page; nothing is written.
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
    """
    _check_write(key, value, key_pages, value_pages, write_slots)
    write_kv_cpu(key, value, key_pages, value_pages, write_slots)


def write_kv_reference(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    """:func:`write_kv` in plain PyTorch: two indexed assignments."""
    _check_write(key, value, key_pages, value_pages, write_slots)
    keys, values = by_token(key_pages, value_pages)
    num_pages, page_size = keys.shape[:2]
    bad = ((write_slots < 0) | (write_slots >= num_pages * page_size)).nonzero()
    if bad.numel():
        raise slot_error(write_slots, int(bad[0]), num_pages, page_size)
    page, place = write_slots // page_size, write_slots % page_size
    keys[page, place], values[page, place] = key, value


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
    copy_pages_cpu(pages, copies)


def copy_pages_reference(pages: Tensor, copies: Tensor) -> None:
    """:func:`copy_pages` in plain PyTorch, a page at a time."""
    _check_copies(pages, copies)
    bad = ((copies < 0) | (copies >= pages.shape[0])).reshape(-1).nonzero()
    if bad.numel():
        raise copy_error(copies, int(bad[0]), pages.shape[0])
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
    if (key.stride()[2] != 1 and head_dim > 1) or (value.stride()[2] != 1 and value_dim > 1):
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
