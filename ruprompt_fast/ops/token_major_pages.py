"""Pages of keys and values as CUDA devices have them: a head's tokens one after another.

A page is ``[kv_heads, PAGE_SIZE, dim]``, so what one head reads of it is one piece of memory. The number of a *slot* is
``page * PAGE_SIZE + place in the page``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import runs_kernels
from ruprompt_fast.ops._paged_checks import check_paged_layout

PAGE_SIZE = 16
"""Tokens per page."""


def token_major_page_shapes(
    num_pages: int, num_kv_heads: int, head_dim: int, value_dim: int
) -> tuple[tuple[int, int, int, int], tuple[int, int, int, int]]:
    """The shapes of one layer's pages.

    Returns:
        ``[num_pages, num_kv_heads, PAGE_SIZE, head_dim]`` of the keys, and ``value_dim`` likewise.
    """
    return (num_pages, num_kv_heads, PAGE_SIZE, head_dim), (num_pages, num_kv_heads, PAGE_SIZE, value_dim)


def write_kv_token_major(
    key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor
) -> None:
    """Writes the keys and values of new tokens into their slots.

    Semantics::

        for token, slot in enumerate(write_slots):
            if 0 <= slot < num_pages * PAGE_SIZE:
                key_pages[slot // PAGE_SIZE, :, slot % PAGE_SIZE] = key[token]
                value_pages[slot // PAGE_SIZE, :, slot % PAGE_SIZE] = value[token]

    A token of slot -1 is padding. Nothing waits for the device: a slot that lies in no page is skipped as well.

    Args:
        key: ``[tokens, kv_heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        value: ``[tokens, kv_heads, value_dim]``, likewise.
        key_pages: of the shape that :func:`token_major_page_shapes` gives, contiguous; float32, bfloat16 or float16, as
            all four.
        value_pages: likewise.
        write_slots: ``[tokens]``, int32 or int64, contiguous; no slot twice, or any of its tokens may win.

    Raises:
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
    """
    _check_write(key, value, key_pages, value_pages, write_slots)
    if not runs_kernels(key_pages):
        _write(key, value, key_pages, value_pages, write_slots)
        return
    from ruprompt_fast.ops.cuda.write_kv import write_kv_cuda

    write_kv_cuda(key, value, key_pages, value_pages, write_slots)


def write_kv_token_major_reference(
    key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor
) -> None:
    """:func:`write_kv_token_major` in plain PyTorch: two indexed assignments."""
    _check_write(key, value, key_pages, value_pages, write_slots)
    _write(key, value, key_pages, value_pages, write_slots)


def _write(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    if len(write_slots) == 0:
        return
    num_slots = key_pages.shape[0] * PAGE_SIZE
    is_written = (write_slots >= 0) & (write_slots < num_slots)
    # No shape may depend on the slots, or the step could not be recorded: a token that is skipped repeats one that is
    # written, and if there is none, what is there already.
    token = torch.where(
        is_written, torch.arange(len(write_slots), device=write_slots.device), is_written.int().argmax()
    )
    slots = write_slots.long()[token].clamp(0, num_slots - 1)
    at = slots // PAGE_SIZE, slots % PAGE_SIZE
    for pages, new in ((key_pages.transpose(1, 2), key), (value_pages.transpose(1, 2), value)):
        pages[at] = torch.where(is_written.any(), new[token], pages[at])


def _check_write(key: Tensor, value: Tensor, key_pages: Tensor, value_pages: Tensor, write_slots: Tensor) -> None:
    check_paged_layout(key_pages, value_pages)
    if key_pages.shape[2] != PAGE_SIZE:
        raise TensorArgumentError(
            f"pages must have {PAGE_SIZE} tokens, not {key_pages.shape[2]}: see token_major_page_shapes"
        )
    if write_slots.dtype not in (torch.int32, torch.int64) or write_slots.dim() != 1 or not write_slots.is_contiguous():
        raise TensorArgumentError(
            f"write_slots must be [tokens], int32 or int64 and contiguous, not {list(write_slots.shape)} of "
            f"{write_slots.dtype} with the strides {write_slots.stride()}"
        )
    _, kv_heads, _, head_dim = key_pages.shape
    tokens, value_dim = write_slots.shape[0], value_pages.shape[3]
    if key.shape != (tokens, kv_heads, head_dim) or value.shape != (tokens, kv_heads, value_dim):
        raise TensorArgumentError(
            f"key and value must be {[tokens, kv_heads, head_dim]} and {[tokens, kv_heads, value_dim]} for these slots "
            f"and pages, not {list(key.shape)} and {list(value.shape)}"
        )
    dtype, device = key_pages.dtype, key_pages.device
    if key.dtype is not dtype or value.dtype is not dtype:
        raise TensorArgumentError(f"key and value must be {dtype} as the pages, not {key.dtype} and {value.dtype}")
    if key.device != device or value.device != device or write_slots.device != device:
        raise TensorArgumentError(
            f"key, value and write_slots must be on {device} as the pages, not on {key.device}, {value.device} and "
            f"{write_slots.device}"
        )
    if (key.stride()[2] != 1 and head_dim > 1) or (value.stride()[2] != 1 and value_dim > 1):
        raise TensorArgumentError(
            f"the last dimension of key and value must be contiguous, but their strides are {key.stride()} and "
            f"{value.stride()}"
        )
