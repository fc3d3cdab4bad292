"""The layout of key and value pages on the CPU, writing to them, copying them.

A page holds 16 tokens. Keys lie with the tokens of a page side by side, so that one vector of 16 lanes holds one
dimension of all of them; values lie token after token.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._errors import copy_error, slot_error

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


def by_token(key_pages: Tensor, value_pages: Tensor) -> tuple[Tensor, Tensor]:
    """Views of the pages as ``[num_pages, PAGE_SIZE, num_kv_heads, head_dim]``, and ``value_dim`` likewise."""
    return key_pages.permute(0, 3, 1, 2), value_pages.permute(0, 2, 1, 3)


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


def write_kv_cpu(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    """:func:`ruprompt_fast.ops.write_kv` of checked arguments."""
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
        raise slot_error(write_slots, bad, num_pages, PAGE_SIZE)


def copy_pages_cpu(pages: Tensor, copies: Tensor) -> None:
    """:func:`ruprompt_fast.ops.copy_pages` of checked arguments."""
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
        raise copy_error(copies, bad, pages.shape[0])
