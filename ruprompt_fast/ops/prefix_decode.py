"""Attention of one query token per row, where neighbouring rows begin with the same pages, which are read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.ops._checks import runs_kernels
from ruprompt_fast.ops._paged_checks import check_block_tables, check_indices, check_paged_call
from ruprompt_fast.ops.paged_decode import paged_decode_reference

if TYPE_CHECKING:
    import numpy.typing as npt

Indices: TypeAlias = "npt.NDArray[np.int32]"


def prefix_decode(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    group_starts: Tensor,
    prefix_lens: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of the last token of every row over the prefix of its group and the rest of its own pages.

    Semantics, for the rows of group g::

        first, stop = group_starts[g], group_starts[g + 1]
        blocks = prefix_lens[first] // page_size
        block_tables[first:stop, :blocks] = block_tables[first, :blocks]     # in a copy
        out[first:stop] = paged_decode(query, ..., block_tables, context_lens)[first:stop]

    So where the rows of a group do begin with the same pages, this is :func:`~ruprompt_fast.ops.paged_decode` to
    rounding. All queries of a group go over its prefix together, and what they get is merged with the rest of each row
    by log-sum-exp: a prefix is read once for as many rows as a tile holds, not once for each.

    As in decoding, what is launched depends on shapes and settings only, and nothing waits for the device.

    Args:
        query: as in :func:`~ruprompt_fast.ops.paged_decode`, like all that is not named here.
        key_pages: likewise.
        value_pages: likewise.
        block_tables: likewise.
        context_lens: likewise.
        group_starts: int32 ``[groups + 1]``, rising from 0: group g has the rows ``group_starts[g]`` to
            ``group_starts[g + 1] - 1``, which may be none. Rows after the last group have no prefix.
        prefix_lens: int32 ``[rows]``, the same for all rows of a group: the tokens that they share, whole pages; 0 for
            rows that share nothing, which may be in one group.
        scaling: likewise.
        sliding_window: likewise.
        softcap: likewise.

    Returns:
        ``[rows, heads, value_dim]`` of the query's dtype, contiguous.

    Raises:
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
        SettingError: ``sliding_window`` or ``softcap`` is not above zero.
    """
    _check(
        query, key_pages, value_pages, block_tables, context_lens, group_starts, prefix_lens, sliding_window, softcap
    )
    attend = prefix_decode_reference
    if runs_kernels(query):
        from ruprompt_fast.ops.cuda.prefix_decode import prefix_decode_cuda

        attend = prefix_decode_cuda
    return attend(
        query,
        key_pages,
        value_pages,
        block_tables,
        context_lens,
        group_starts,
        prefix_lens,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )


def prefix_decode_reference(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    group_starts: Tensor,
    prefix_lens: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """:func:`prefix_decode` in plain PyTorch: every row's block table with its group's pages, and ``paged_decode``."""
    _check(
        query, key_pages, value_pages, block_tables, context_lens, group_starts, prefix_lens, sliding_window, softcap
    )
    row = torch.arange(query.shape[0], device=query.device)
    block = torch.arange(block_tables.shape[1], device=query.device)
    # Rows after the last group are found after it; they share nothing.
    group = torch.searchsorted(group_starts[1:], row, right=True)
    first = torch.where(row < group_starts[-1], group_starts[group], row)
    is_shared = block * key_pages.shape[2] < torch.where(row < group_starts[-1], prefix_lens[first], 0)[:, None]
    return paged_decode_reference(
        query,
        key_pages,
        value_pages,
        torch.where(is_shared, block_tables[first], block_tables),
        context_lens,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )


class SharedPrefixes(NamedTuple):
    """Which neighbouring rows share a prefix, as :func:`prefix_decode` takes it, on the host.

    Attributes:
        group_starts: int32 ``[groups + 1]``; all rows are in groups, those that share nothing as well.
        prefix_lens: int32 ``[rows]``.
    """

    group_starts: Indices
    prefix_lens: Indices

    @property
    def saved_tokens(self) -> int:
        """Tokens that are not read again: all prefixes, but for one of each group."""
        return int(self.prefix_lens.sum() - self.prefix_lens[self.group_starts[:-1]].sum())


def shared_prefix_groups(
    block_tables: Indices, context_lens: Indices, page_size: int, least_tokens: int = 64
) -> SharedPrefixes:
    """Finds the neighbouring rows that begin with the same pages.

    Two neighbours belong together if they share at least ``least_tokens`` tokens in whole pages, and at least half of
    what either of them shares with its other neighbour. What all rows of a group share is its prefix. Neighbours that
    share nothing are in one group.

    Args:
        block_tables: ``[rows, blocks]``, of a step's decoding rows.
        context_lens: ``[rows]``.
        page_size: tokens per page.
        least_tokens: shorter prefixes count as none.
    """
    is_same = np.logical_and.accumulate(block_tables[1:] == block_tables[:-1], axis=1)
    shared = np.minimum(is_same.sum(1), np.minimum(context_lens[1:], context_lens[:-1]) // page_size) * page_size
    padded = np.pad(shared, 1)
    is_together = (shared >= max(least_tokens, 1)) & (2 * shared >= np.maximum(padded[:-2], padded[2:]))
    return _grouped(shared, is_together, len(context_lens))


def _grouped(shared: npt.NDArray[np.int64], is_together: npt.NDArray[np.bool_], rows: int) -> SharedPrefixes:
    """Groups out of what each row shares with the next one, and whether the two are in one group for it."""
    if rows == 0:
        return SharedPrefixes(np.zeros(1, np.int32), np.zeros(0, np.int32))
    padded = np.pad(is_together, 1)
    is_alone = ~(padded[1:] | padded[:-1])
    starts = np.flatnonzero(np.insert(~is_together & ~(is_alone[1:] & is_alone[:-1]), 0, True))
    # A group's prefix is the least that two of its neighbouring rows share; its last row does not count.
    bounds = np.append(np.where(is_together, shared, np.iinfo(np.int64).max), np.iinfo(np.int64).max)
    prefixes = np.where(is_alone[starts], 0, np.minimum.reduceat(bounds, starts))
    prefix_lens = np.repeat(prefixes, np.diff(starts, append=rows))
    return SharedPrefixes(np.append(starts, rows).astype(np.int32), prefix_lens.astype(np.int32))


def _check(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    block_tables: Tensor,
    context_lens: Tensor,
    group_starts: Tensor,
    prefix_lens: Tensor,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    check_paged_call(query, key_pages, value_pages, sliding_window, softcap)
    rows, device = query.shape[0], query.device
    check_block_tables(block_tables, rows, device)
    check_indices("context_lens", context_lens, (rows,), device)
    check_indices("prefix_lens", prefix_lens, (rows,), device)
    check_indices("group_starts", group_starts, (max(group_starts.numel(), 1),), device)
