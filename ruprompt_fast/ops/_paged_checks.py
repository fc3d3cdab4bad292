"""What attention over token-major pages requires of its arguments, whoever the queries belong to."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import SettingError, TensorArgumentError, shown

_PAGE_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def check_paged_call(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    """Raises :class:`TensorArgumentError` or :class:`SettingError` unless the queries can be attended over the pages.

    Args:
        query: ``[rows, heads, head_dim]``, the last dimension contiguous.
        key_pages: ``[pages, kv_heads, page_size, head_dim]``, contiguous; float32, float16 or bfloat16, as all three.
        value_pages: ``[pages, kv_heads, page_size, value_dim]``, likewise.
        sliding_window: at least 1, or None.
        softcap: above zero, or None.
    """
    check_paged_layout(key_pages, value_pages)
    kv_heads, head_dim = key_pages.shape[1], key_pages.shape[3]
    if query.dim() != 3 or query.shape[2] != head_dim or query.shape[1] % kv_heads:
        raise TensorArgumentError(
            f"query must be [rows, heads, head_dim] with {head_dim} numbers a head and a multiple of {kv_heads} heads, "
            f"as the pages have; found {list(query.shape)}"
        )
    if query.dtype is not key_pages.dtype or query.device != key_pages.device:
        raise TensorArgumentError(
            f"query must be {key_pages.dtype} on {key_pages.device}, as the pages are; found {query.dtype} on "
            f"{query.device}"
        )
    if query.stride()[2] != 1 and head_dim > 1:
        raise TensorArgumentError(f"the last dimension of query must be contiguous; its strides are {query.stride()}")
    if sliding_window is not None and sliding_window < 1:
        raise SettingError(f"sliding_window must be at least 1, or None for all; found {shown(sliding_window)}")
    if softcap is not None and not softcap > 0:
        raise SettingError(f"softcap must be above zero, or None for none; found {shown(softcap)}")


def check_indices(name: str, indices: Tensor, shape: tuple[int, ...], device: torch.device) -> None:
    """Raises :class:`TensorArgumentError` unless ``indices`` are int32 of this shape there, each row contiguous."""
    if indices.dtype is not torch.int32 or indices.shape != shape or indices.device != device:
        raise TensorArgumentError(
            f"{name} must be int32 {list(shape)} on {device}; found {indices.dtype} {list(indices.shape)} on "
            f"{indices.device}"
        )
    if indices.shape[-1] > 1 and indices.stride()[-1] != 1:
        raise TensorArgumentError(f"the last dimension of {name} must be contiguous; found strides {indices.stride()}")


def check_block_tables(block_tables: Tensor, rows: int, device: torch.device) -> None:
    """Raises :class:`TensorArgumentError` unless the tables are int32 ``[rows, blocks]`` there, rows contiguous."""
    blocks = block_tables.shape[1] if block_tables.dim() == 2 else 0
    check_indices("block_tables", block_tables, (rows, blocks), device)


def check_paged_layout(key_pages: Tensor, value_pages: Tensor) -> None:
    """Raises :class:`TensorArgumentError` unless both are pages that belong together, as :func:`check_paged_call`."""
    if key_pages.dim() != 4 or value_pages.dim() != 4 or key_pages.shape[:3] != value_pages.shape[:3]:
        raise TensorArgumentError(
            f"key_pages and value_pages must be [pages, kv_heads, page_size, dim] and equal but for the last number; "
            f"found {list(key_pages.shape)} and {list(value_pages.shape)}"
        )
    if 0 in key_pages.shape or 0 in value_pages.shape or key_pages.shape[2] & (key_pages.shape[2] - 1):
        raise TensorArgumentError(
            f"pages must have tokens, a power of two of them, heads and dimensions; found {list(key_pages.shape)} and "
            f"{list(value_pages.shape)}"
        )
    if key_pages.dtype not in _PAGE_DTYPES or value_pages.dtype is not key_pages.dtype:
        raise TensorArgumentError(
            f"pages must be all float32, all float16 or all bfloat16; found {key_pages.dtype} and {value_pages.dtype}"
        )
    if key_pages.device != value_pages.device or not (key_pages.is_contiguous() and value_pages.is_contiguous()):
        raise TensorArgumentError(
            f"pages must be contiguous and on one device; found {key_pages.device} and {value_pages.device}, strides "
            f"{key_pages.stride()} and {value_pages.stride()}"
        )
