"""Decoding after shared prefixes on CUDA: the prefixes' parts, the rests' parts, and the sum of both."""

from __future__ import annotations

import torch
from torch import Tensor

from ruprompt_fast.kernels.paged_decode import SPLIT
from ruprompt_fast.kernels.prefix_decode import launch_prefix_decode
from ruprompt_fast.ops.cuda.cards import Card, card_of
from ruprompt_fast.ops.cuda.paged_decode import decode_parts, merge_parts, new_parts, num_decode_parts
from ruprompt_fast.ops.cuda.tiles import tile_of


def prefix_decode_cuda(
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
    card: Card | None = None,
) -> Tensor:
    """:func:`ruprompt_fast.ops.prefix_decode` of checked arguments; ``card`` defaults to the query's."""
    card = card or card_of(query.device)
    value_dim = value_pages.shape[3]
    parts = num_decode_parts(key_pages, block_tables)
    # A prefix and the rest have a part each for the tokens among which one ends and the other begins.
    partials, lse = new_parts(query, 2 * parts, value_dim)
    decode_parts(
        query,
        key_pages,
        value_pages,
        block_tables,
        context_lens,
        partials[:parts],
        lse[:parts],
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
        first_tokens=prefix_lens,
        card=card,
    )
    with torch.cuda.device(query.get_device()):
        launch_prefix_decode(
            query,
            key_pages,
            value_pages,
            block_tables,
            context_lens,
            group_starts,
            prefix_lens,
            partials[parts:],
            lse[parts:],
            split=SPLIT,
            scaling=scaling,
            sliding_window=sliding_window,
            softcap=softcap,
            tile=tile_of(query, value_pages, card),
        )
    out = query.new_empty((*query.shape[:2], value_dim))
    merge_parts(partials, lse, out)
    return out
