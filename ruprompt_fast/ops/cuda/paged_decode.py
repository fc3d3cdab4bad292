"""Decoding over token-major pages on CUDA: the choice of a tile, memory for parts, launches."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels import paged_decode as kernels
from ruprompt_fast.kernels.merge_parts import launch_merge
from ruprompt_fast.ops.cuda.cards import Card, card_of


def paged_decode_cuda(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    card: Card | None = None,
) -> Tensor:
    """:func:`ruprompt_fast.ops.paged_decode` of checked arguments; ``card`` defaults to the query's."""
    rows, heads, _ = query.shape
    value_dim = value_pages.shape[3]
    out = query.new_empty((rows, heads, value_dim))
    parts = num_decode_parts(key_pages, block_tables)
    partials, lse = (out, None) if parts == 1 else new_parts(query, parts, value_dim)
    decode_parts(
        query,
        key_pages,
        value_pages,
        block_tables,
        context_lens,
        partials,
        lse,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        card=card,
    )
    if lse is not None:
        merge_parts(partials, lse, out)
    return out


def num_decode_parts(key_pages: Tensor, block_tables: Tensor) -> int:
    """Parts into which :func:`decode_parts` cuts rows of these block tables, at least one."""
    return int(kernels.num_parts(block_tables.shape[1], key_pages.shape[2]))


def new_parts(query: Tensor, parts: int, value_dim: int) -> tuple[Tensor, Tensor]:
    """Memory for the parts of queries: float32 ``[parts, rows, heads, value_dim]`` and ``[parts, rows, heads]``."""
    shape = (parts, *query.shape[:2])
    return (
        query.new_empty((*shape, value_dim), dtype=torch.float32),
        query.new_empty(shape, dtype=torch.float32),
    )


def decode_parts(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    partials: Tensor,
    lse: Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    first_tokens: Tensor | None = None,
    card: Card | None = None,
) -> None:
    """Attention over each part of every row, for :func:`merge_parts`, which may be given other parts beside.

    Args:
        query: as in :func:`ruprompt_fast.ops.paged_decode`, like all that is not named here.
        key_pages: likewise.
        value_pages: likewise.
        block_tables: likewise.
        context_lens: likewise.
        partials: ``[num_decode_parts, rows, heads, value_dim]``, float32, contiguous: every part's attention. Without
            ``lse`` the result of the only part, in the query's dtype.
        lse: ``[num_decode_parts, rows, heads]``, float32, contiguous: the natural logarithms of the sums of weights,
            minus infinity where a part has seen nothing, whose attention is then not written.
        scaling: likewise.
        sliding_window: likewise.
        softcap: likewise.
        first_tokens: int32 ``[rows]``, contiguous; a row attends to the positions from this one on. Defaults to all.
        card: defaults to the query's.
    """
    group = query.shape[1] // key_pages.shape[1]
    # Tensor cores would take digits from float32.
    fast_dot = (card or card_of(query.device)).has_fast_dot and query.dtype is not torch.float32
    with torch.cuda.device(query.get_device()):
        kernels.launch_decode(
            query,
            key_pages,
            value_pages,
            block_tables,
            context_lens,
            first_tokens,
            partials,
            lse,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            tile=kernels.decode_tile(group, key_pages.shape[3], value_pages.shape[3], fast_dot),
        )


def merge_parts(partials: Tensor, lse: Tensor, out: Tensor) -> None:
    """Fills ``out`` ``[rows, heads, dim]`` with the sum of ``partials`` weighted by ``lse.softmax(0)``; zeros without.

    Args:
        partials: ``[parts, rows, heads, dim]``, float32, contiguous, any number of parts.
        lse: ``[parts, rows, heads]``, float32, contiguous; a part whose ``lse`` is minus infinity is not read.
        out: contiguous, of any dtype.
    """
    with torch.cuda.device(out.get_device()):
        launch_merge(partials, lse, out)
