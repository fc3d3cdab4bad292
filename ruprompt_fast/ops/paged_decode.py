"""Attention of one query token per row over keys and values in token-major pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import check_mask, check_query, runs_kernels
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE, check_token_major_pages


def paged_decode(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of the last token of every row over its row's pages.

    Semantics, for row r, whose context is c, and head h of ``group`` that share keys and values::

        seen = slice(max(0, c - sliding_window) if sliding_window else 0, c)
        key = key_pages[block_tables[r], h // group].flatten(0, 1)    # [slots, head_dim], value likewise
        scores = query[r, h] @ key[seen].T * scaling
        scores = softcap * tanh(scores / softcap) if softcap else scores
        out[r, h] = scores.softmax(-1) @ value[seen] if c else 0

    Products, softmax and sums run in float32; the result is rounded once. What lies outside ``seen``, be it infinite,
    and entries of a block table after its context are not read. Nothing waits for the device, so numbers on it are not
    checked. A row's result does not depend on the other rows, nor on how wide the block tables are.

    Args:
        query: ``[rows, heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        key_pages: of the shape that :func:`~ruprompt_fast.ops.token_major_page_shapes` gives, contiguous; float32,
            bfloat16 or float16, as all three.
        value_pages: likewise.
        block_tables: int32 ``[rows, blocks]``, the rows at any stride.
        context_lens: int32 ``[rows]``; the row's tokens in the pages, its query token included; 0 is padding. At most
            ``blocks * PAGE_SIZE``.
        scaling: what scores are multiplied by.
        sliding_window: how many of the last positions a token sees, itself among them; all without.
        softcap: the bound of the scores' soft cap; none without.

    Returns:
        ``[rows, heads, value_dim]`` of the query's dtype, contiguous.

    Raises:
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
        SettingError: ``sliding_window`` or ``softcap`` is not above zero.
    """
    _check_call(query, key_pages, value_pages, block_tables, context_lens, sliding_window, softcap)
    if not runs_kernels(query):
        return _attend(query, key_pages, value_pages, block_tables, context_lens, scaling, sliding_window, softcap)
    from ruprompt_fast.ops.cuda.paged_decode import paged_decode_cuda

    return paged_decode_cuda(
        query,
        key_pages,
        value_pages,
        block_tables,
        context_lens,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )


def paged_decode_reference(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """:func:`paged_decode` in plain PyTorch: gather, mask and softmax in float64, all rows at once."""
    _check_call(query, key_pages, value_pages, block_tables, context_lens, sliding_window, softcap)
    return _attend(query, key_pages, value_pages, block_tables, context_lens, scaling, sliding_window, softcap)


def _attend(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
) -> Tensor:
    position = torch.arange(block_tables.shape[1] * PAGE_SIZE, device=query.device)
    end = context_lens[:, None]
    seen = position < end
    # After a context the tables may hold anything; the pages that stand there in this table are masked below.
    pages = torch.where(seen[:, ::PAGE_SIZE], block_tables, 0).long()
    if sliding_window is not None:
        seen = seen & (position >= end - sliding_window)
    seen = seen[:, None, None]
    key, value = (part[pages].transpose(1, 2).flatten(2, 3).double() for part in (key_pages, value_pages))
    grouped = query.double().unflatten(1, (key_pages.shape[1], -1))
    scores = grouped @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # The softmax of a row of padding is NaN, and zero times a value that is not seen may be.
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    return (weights @ value.masked_fill(~seen.transpose(2, 3), 0.0)).flatten(1, 2).to(query.dtype)


def _check_call(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    check_token_major_pages(key_pages, value_pages)
    rows = context_lens.shape[0] if context_lens.dim() else 0
    check_query(query, rows, key_pages, key_pages.shape[3])
    check_mask(sliding_window, softcap)
    if block_tables.dtype is not torch.int32 or block_tables.dim() != 2 or block_tables.shape[0] != rows:
        raise TensorArgumentError(
            f"block_tables must be [{rows}, blocks] and int32 for these context_lens, not {list(block_tables.shape)} "
            f"of {block_tables.dtype}"
        )
    if block_tables.stride()[1] != 1 and block_tables.shape[1] > 1:
        raise TensorArgumentError(
            f"the last dimension of block_tables must be contiguous, but its strides are {block_tables.stride()}"
        )
    if context_lens.dtype is not torch.int32 or context_lens.dim() != 1 or not context_lens.is_contiguous():
        raise TensorArgumentError(
            f"context_lens must be [rows], int32 and contiguous, not {list(context_lens.shape)} of {context_lens.dtype}"
        )
    device = query.device
    if block_tables.device != device or context_lens.device != device:
        raise TensorArgumentError(
            f"block_tables and context_lens must be on {device} as the query, not on {block_tables.device} and "
            f"{context_lens.device}"
        )
