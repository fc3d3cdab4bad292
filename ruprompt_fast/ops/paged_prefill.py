"""Attention of packed sequences over token-major pages: prefill, chunked prefill, and rows that decode among them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops._checks import runs_kernels
from ruprompt_fast.ops._paged_checks import check_block_tables, check_indices, check_paged_call

if TYPE_CHECKING:
    import numpy.typing as npt

Lens: TypeAlias = "npt.NDArray[np.int32]"


@dataclass(frozen=True, eq=False)
class HostLens:
    """What the host knows of a step's sequences: the numbers that are in the tensors of the same names.

    Attributes:
        query_starts: int32 ``[sequences + 1]``.
        context_lens: int32 ``[sequences]``.
    """

    query_starts: Lens
    context_lens: Lens

    @property
    def query_lens(self) -> Lens:
        """Query tokens of each sequence."""
        return self.query_starts[1:] - self.query_starts[:-1]

    @property
    def longest_context(self) -> int:
        """Tokens of the longest sequence."""
        return int(self.context_lens.max(initial=0))

    def span(self, first: int, stop: int) -> slice:
        """Where the query tokens of the sequences ``first .. stop - 1`` are."""
        return slice(int(self.query_starts[first]), int(self.query_starts[stop]))


def paged_prefill(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    host_lens: HostLens | None = None,
) -> Tensor:
    """Causal attention of every query token over the pages of its sequence.

    Semantics, for token t of sequence s, whose query tokens end before ``stop = query_starts[s + 1]``::

        end = context_lens[s] - (stop - t) + 1
        seen = slice(max(0, end - sliding_window) if sliding_window else 0, end)
        key = key_pages[block_tables[s]].transpose(1, 2).flatten(0, 1)   # [slots, kv_heads, head_dim], value likewise
        scores = query[t, h] @ key[seen, h // (heads // kv_heads)].T * scaling
        scores = softcap * tanh(scores / softcap) if softcap else scores
        out[t, h] = scores.softmax(-1) @ value[seen, h // (heads // kv_heads)]

    A sequence's query tokens are the last of its context, so a sequence that decodes has one. Tokens from
    ``query_starts[-1]`` on are padding and give zeros. Softmax and sums run in float32. What lies in slots after a
    sequence's context is not read, whatever it is, and neither are the block tables' entries for it. Inference only.

    Nothing waits for the device. On sm_70 and sm_75 torch's memory-efficient attention uses tensor cores, where Triton
    does not, but the memory that it takes depends on the lengths. It is chosen where the host gives them, and where
    neither a window that hides something nor a soft cap is asked for.

    Args:
        query: ``[tokens, heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        key_pages: ``[pages, kv_heads, page_size, head_dim]``, contiguous, a power of two of tokens a page; float32,
            float16 or bfloat16, as all three.
        value_pages: ``[pages, kv_heads, page_size, value_dim]``, likewise.
        query_starts: int32 ``[sequences + 1]``, rising from 0.
        context_lens: int32 ``[sequences]``, query tokens included.
        block_tables: int32 ``[sequences, blocks]``, any stride of the rows; at least as many blocks as the longest
            context has.
        scaling: what scores are multiplied by.
        sliding_window: how many of the last positions a token sees, itself among them; all without.
        softcap: the bound of the scores' soft cap; none without.
        host_lens: the same lengths on the host.

    Returns:
        ``[tokens, heads, value_dim]`` of the query's dtype, contiguous.

    Raises:
        TensorArgumentError: a shape, dtype, layout or device that is not as above.
        SettingError: ``sliding_window`` or ``softcap`` is not above zero.
    """
    _check(query, key_pages, value_pages, query_starts, context_lens, block_tables, sliding_window, softcap, host_lens)
    attend = _attend
    if runs_kernels(query):
        from ruprompt_fast.ops.cuda.paged_prefill import paged_prefill_cuda

        attend = paged_prefill_cuda
    return attend(
        query,
        key_pages,
        value_pages,
        query_starts,
        context_lens,
        block_tables,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        host_lens=host_lens,
    )


def paged_prefill_reference(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    host_lens: HostLens | None = None,
) -> Tensor:
    """:func:`paged_prefill` in plain PyTorch, in float64, a sequence at a time, with no wait for the device.

    Without ``host_lens`` every sequence's pages are attended to by all tokens, of which its own are kept.
    """
    _check(query, key_pages, value_pages, query_starts, context_lens, block_tables, sliding_window, softcap, host_lens)
    return _attend(
        query,
        key_pages,
        value_pages,
        query_starts,
        context_lens,
        block_tables,
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        host_lens=host_lens,
    )


def _attend(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    *,
    scaling: float,
    sliding_window: int | None,
    softcap: float | None,
    host_lens: HostLens | None,
) -> Tensor:
    page_size, head_group = key_pages.shape[2], query.shape[1] // key_pages.shape[1]
    out = query.new_zeros((*query.shape[:2], value_pages.shape[3]))
    token = torch.arange(query.shape[0], device=query.device)
    slot = torch.arange(block_tables.shape[1] * page_size, device=query.device)
    for sequence in range(context_lens.shape[0]):
        span, blocks = slice(None), block_tables.shape[1]
        if host_lens is not None:
            span, blocks = (
                host_lens.span(sequence, sequence + 1),
                -(-int(host_lens.context_lens[sequence]) // page_size),
            )
        position = slot[: blocks * page_size]
        present = position < context_lens[sequence]
        pages = block_tables[sequence, :blocks].long().masked_fill(~present[::page_size], 0)
        key, value = (
            part[pages].transpose(1, 2).flatten(0, 1).double().masked_fill(~present[:, None, None], 0)
            for part in (key_pages, value_pages)
        )
        key, value = (part.repeat_interleave(head_group, 1).transpose(0, 1) for part in (key, value))
        scores = query[span].double().transpose(0, 1) @ key.transpose(1, 2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        start, stop = query_starts[sequence], query_starts[sequence + 1]
        end = context_lens[sequence] - (stop - token[span, None]) + 1
        seen = position < end
        if sliding_window is not None:
            seen = seen & (position >= end - sliding_window)
        result = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(0, 1).to(query.dtype)
        own = (token[span] >= start) & (token[span] < stop)
        out[span] = torch.where(own[:, None, None], result, out[span])
    return out


def _check(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    query_starts: Tensor,
    context_lens: Tensor,
    block_tables: Tensor,
    sliding_window: int | None,
    softcap: float | None,
    host_lens: HostLens | None,
) -> None:
    check_paged_call(query, key_pages, value_pages, sliding_window, softcap)
    sequences = context_lens.shape[0] if context_lens.dim() == 1 else 0
    check_indices("context_lens", context_lens, (sequences,), query.device)
    check_indices("query_starts", query_starts, (sequences + 1,), query.device)
    check_block_tables(block_tables, sequences, query.device)
    if host_lens is not None and (
        host_lens.query_starts.shape != (sequences + 1,) or host_lens.context_lens.shape != (sequences,)
    ):
        raise TensorArgumentError(
            f"host_lens must have the lengths of {sequences} sequences, as the tensors; found query_starts "
            f"{list(host_lens.query_starts.shape)} and context_lens {list(host_lens.context_lens.shape)}"
        )
