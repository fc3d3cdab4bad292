"""Prefill on CUDA: one kernel over the pages, or the pages gathered for torch's attention where that is faster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.kernels import paged_prefill as kernels
from ruprompt_fast.ops.cuda.cards import Card, card_of
from ruprompt_fast.ops.cuda.gathered_prefill import gathered_prefill
from ruprompt_fast.ops.cuda.paged_decode import paged_decode_cuda
from ruprompt_fast.ops.cuda.tiles import tile_of
from ruprompt_fast.ops.cuda.varlen_attention import VarlenKernel, varlen_kernel

if TYPE_CHECKING:
    from ruprompt_fast.ops.paged_prefill import HostLens


def paged_prefill_cuda(
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
    card: Card | None = None,
) -> Tensor:
    """:func:`ruprompt_fast.ops.paged_prefill` of checked arguments; ``card`` defaults to the one that they are on."""
    card = card or card_of(query.device)
    if host_lens is not None and len(query) == len(context_lens) and (host_lens.query_lens == 1).all():
        # A step that only decodes, but not in a graph: decoding's kernel divides long contexts among programs.
        return paged_decode_cuda(
            query,
            key_pages,
            value_pages,
            block_tables,
            context_lens,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            card=card,
        )
    with torch.cuda.device(query.get_device()):
        if host_lens is not None and sliding_window is not None and sliding_window >= host_lens.longest_context:
            sliding_window = None
        kernel = _library_kernel(query, value_pages, sliding_window, softcap, card)
        if host_lens is not None and kernel is not None:
            return gathered_prefill(
                query,
                key_pages,
                value_pages,
                query_starts,
                context_lens,
                block_tables,
                host_lens,
                kernel,
                scaling=scaling,
                card=card,
            )
        out = query.new_empty((*query.shape[:2], value_pages.shape[3]))
        kernels.launch_paged_prefill(
            query,
            key_pages,
            value_pages,
            query_starts,
            context_lens,
            block_tables,
            out,
            scaling,
            sliding_window,
            softcap,
            tile_of(query, value_pages, card),
        )
        return out


def _library_kernel(
    query: Tensor, value_pages: Tensor, sliding_window: int | None, softcap: float | None, card: Card
) -> VarlenKernel | None:
    """Torch's kernel, where ours would not run on tensor cores and torch's has all that is asked."""
    if card.has_fast_dot or not query.is_cuda or sliding_window is not None or softcap is not None:
        return None
    return varlen_kernel(query, value_pages, None, card)
