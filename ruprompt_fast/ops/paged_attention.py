"""Attention of the packed tokens of a step over keys and values that lie in pages."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ruprompt_fast.errors import PageIndexError
from ruprompt_fast.ops.cpu.kv_pages import by_token
from ruprompt_fast.ops.cpu.paged_attention import AttentionTables, check_call, paged_attention_cpu


@dataclass(slots=True, eq=False)
class AttentionPlan:
    """Who attends to what in one step; one plan serves all layers of it.

    Attributes:
        query_starts: int32 ``[rows + 1]``; row r's query tokens are ``query_starts[r] .. query_starts[r + 1] - 1`` of
            the packed batch.
        context_lens: int32 ``[rows]``; the row's tokens in the cache, its query tokens included, which are the last.
        block_tables: int32 ``[rows, pages]``; each row's pages in order; what comes after its context is not read.
        write_slots: int64 ``[tokens]``; where the query tokens' keys and values go.
    """

    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    write_slots: Tensor


def paged_attention(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Causal attention of every query token over its row's pages.

    Semantics, for query token j of the q of row r, whose context is c::

        end = c - q + j + 1
        seen = slice(max(0, end - sliding_window) if sliding_window else 0, end)
        key = by_token(key_pages)[block_tables[r]].flatten(0, 1)    # [slots, kv_heads, head_dim], value likewise
        scores = query[query_starts[r] + j, h] @ key[seen, h // (heads // kv_heads)].T * scaling
        scores = softcap * tanh(scores / softcap) if softcap else scores
        out[query_starts[r] + j, h] = scores.softmax(-1) @ value[seen, h // (heads // kv_heads)]

    Products, softmax and sums run in float32; the result is rounded once. A token's result is bitwise
    identical whatever other rows there are, however its row's tokens are divided over steps, and whatever the number of
    threads. Pages that adjacent rows begin with alike are read once for all of them. Inference only: there is no
    gradient.

    This makes the CPU's tables of the plan at every call; a step makes
    :class:`~ruprompt_fast.ops.cpu.paged_attention.AttentionTables` once for all layers.

    Args:
        query: ``[tokens, heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        key_pages: of the shape that :func:`~ruprompt_fast.ops.kv_page_shapes` gives, contiguous; float32, bfloat16 or
            float16, as all three.
        value_pages: likewise.
        plan: the step's rows.
        scaling: what scores are multiplied by.
        sliding_window: how many of the last positions a token sees, itself among them; all without.
        softcap: the bound of the scores' soft cap; none without.

    Returns:
        ``[tokens, heads, value_dim]`` of the query's dtype, contiguous.

    Raises:
        TensorArgumentError: a shape, dtype, layout or device that is not as above, or a plan that contradicts itself.
        PageIndexError: a row's context lies in a page that does not exist.
        SettingError: ``sliding_window`` or ``softcap`` is not above zero.
    """
    return paged_attention_cpu(
        query,
        key_pages,
        value_pages,
        AttentionTables(plan),
        scaling=scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )


def paged_attention_reference(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    plan: AttentionPlan,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """:func:`paged_attention` in plain PyTorch: gather, mask and softmax in float64, one row after another."""
    check_call(query, key_pages, value_pages, AttentionTables(plan), sliding_window, softcap)
    group = query.shape[1] // key_pages.shape[1]
    out = query.new_empty((*query.shape[:2], value_pages.shape[3]))
    keys, values = by_token(key_pages, value_pages)
    starts = plan.query_starts.tolist()
    for row, context in enumerate(plan.context_lens.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        pages = plan.block_tables[row, : -(-context // keys.shape[1])].long()
        if pages.numel() and not 0 <= int(pages.min()) <= int(pages.max()) < key_pages.shape[0]:
            raise PageIndexError(f"a page does not exist: row {row} has the pages {pages.tolist()}")
        key, value = (
            part[pages].flatten(0, 1)[:context].transpose(0, 1).double().repeat_interleave(group, 0)
            for part in (keys, values)
        )
        scores = query[tokens].double().transpose(0, 1) @ key.transpose(1, 2) * scaling
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        position = torch.arange(context)
        end = position[context - (starts[row + 1] - starts[row]) :, None] + 1
        seen = position < end
        if sliding_window is not None:
            seen = seen & (position >= end - sliding_window)
        out[tokens] = (scores.masked_fill(~seen, float("-inf")).softmax(-1) @ value).transpose(0, 1).to(query.dtype)
    return out
