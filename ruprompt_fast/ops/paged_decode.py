"""Attention of one query token per row over keys and values in token-major pages."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.ops._checks import runs_kernels
from ruprompt_fast.ops._paged_checks import check_block_tables, check_indices, check_paged_call


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

    This is for decoding, whose steps are captured in CUDA graphs: what is launched depends on shapes and settings only.
    Products, softmax and sums run in float32; the result is rounded once. What lies outside ``seen``, be it infinite,
    and entries of a block table after its context are not read. Nothing waits for the device, so numbers on it are not
    checked. A row's result does not depend on the other rows, nor on how wide the block tables are.

    Args:
        query: ``[rows, heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        key_pages: ``[pages, kv_heads, page_size, head_dim]``, contiguous, a power of two of tokens a page; float32,
            float16 or bfloat16, as all three.
        value_pages: ``[pages, kv_heads, page_size, value_dim]``, likewise.
        block_tables: int32 ``[rows, blocks]``, the rows at any stride.
        context_lens: int32 ``[rows]``; the row's tokens in the pages, its query token included; 0 is padding. At most
            ``blocks * page_size``.
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
    page_size = key_pages.shape[2]
    position = torch.arange(block_tables.shape[1] * page_size, device=query.device)
    end = context_lens[:, None]
    seen = position < end
    # After a context the tables may hold anything; the pages that stand there in this table are masked below.
    pages = torch.where(seen[:, ::page_size], block_tables, 0).long()
    if sliding_window is not None:
        seen = seen & (end - position <= sliding_window)
    seen = seen[:, None, None]
    key, value = (part[pages].transpose(1, 2).flatten(2, 3).double() for part in (key_pages, value_pages))
    grouped = query.double().unflatten(1, (key_pages.shape[1], -1))
    scores = grouped @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    # The softmax of a row of padding is NaN, and zero times a value that is not seen may be.
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1).masked_fill(~seen, 0.0)
    out: Tensor = weights @ value.masked_fill(~seen.transpose(2, 3), 0.0)
    return out.flatten(1, 2).to(query.dtype)


def _check_call(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    check_paged_call(query, key_pages, value_pages, sliding_window, softcap)
    check_block_tables(block_tables, query.shape[0], query.device)
    check_indices("context_lens", context_lens, (query.shape[0],), query.device)
