"""Attention of the packed tokens of a step over keys and values that lie in pages."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from ruprompt_fast import _C
from ruprompt_fast.errors import PageIndexError, SettingError, TensorArgumentError
from ruprompt_fast.ops._checks import DTYPE_NAMES
from ruprompt_fast.ops.kv_pages import PAGE_SIZE, check_pages


@dataclass(slots=True, eq=False)
class AttentionPlan:
    """Who attends to what in one step; one plan serves all layers of it.

    The tensors are checked and copied when the plan is first used: a change of theirs afterwards is not seen.

    Attributes:
        query_starts: int32 ``[rows + 1]``; row r's query tokens are ``query_starts[r] .. query_starts[r + 1] - 1`` of
            the packed batch.
        context_lens: int32 ``[rows]``; the row's tokens in the cache, its query tokens included, which are the last.
        page_tables: int32 ``[rows, pages]``; each row's pages in order; what lies behind its context is not read.
        write_slots: int64 ``[tokens]``; where the query tokens' keys and values go.
        max_query_len: the largest number of query tokens of a row.
        max_context_len: the largest context, in tokens.
    """

    query_starts: Tensor
    context_lens: Tensor
    page_tables: Tensor
    write_slots: Tensor
    max_query_len: int
    max_context_len: int
    _tables: _C.AttentionTables | None = field(default=None, init=False, repr=False)

    def cpu_tables(self) -> _C.AttentionTables:
        """The plan as the CPU kernel takes it.

        Raises:
            TensorArgumentError: a shape, dtype or device is not as above, or numbers contradict each other.
            PageIndexError: a page of a row's context is negative.
        """
        if self._tables is None:
            _check_plan(self)
            try:
                self._tables = _C.AttentionTables(
                    self.query_starts.data_ptr(),
                    self.context_lens.data_ptr(),
                    self.context_lens.shape[0],
                    self.page_tables.data_ptr(),
                    self.page_tables.stride(0),
                    self.page_tables.shape[1],
                )
            except IndexError as error:
                raise PageIndexError(f"a page does not exist: {error}") from None
            except ValueError as error:
                raise TensorArgumentError(f"the plan contradicts itself: {error}") from None
        return self._tables


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
        key = key_pages[page_tables[r]].transpose(2, 3) as [slots, kv_heads, head_dim], value likewise
        scores = query[query_starts[r] + j, h] @ key[seen, h // (heads // kv_heads)].T * scaling
        scores = softcap * tanh(scores / softcap) if softcap else scores
        out[query_starts[r] + j, h] = scores.softmax(-1) @ value[seen, h // (heads // kv_heads)]

    Products, softmax and sums run in float32; the result is rounded once. A token's result is the same to the bit
    whatever other rows there are, however its row's tokens are divided over steps, and whatever the number of threads.
    Pages that adjacent rows begin with alike are read once for all of them. Inference only: there is no gradient.

    Args:
        query: ``[tokens, heads, head_dim]``, any strides of the first two dimensions, the last one contiguous.
        key_pages: ``[pages, kv_heads, head_dim, 16]``, contiguous; float32, bfloat16 or float16, as all three.
        value_pages: ``[pages, kv_heads, 16, value_dim]``, contiguous.
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
    _check_call(query, key_pages, value_pages, plan, sliding_window, softcap)
    tokens, heads, head_dim = query.shape
    num_pages, kv_heads, _, _ = key_pages.shape
    value_dim = value_pages.shape[3]
    token_stride, head_stride, _ = query.stride()
    out = torch.empty((tokens, heads, value_dim), dtype=query.dtype)
    try:
        _C.paged_attention(
            plan.cpu_tables(),
            DTYPE_NAMES[query.dtype],
            query.data_ptr(),
            token_stride,
            head_stride,
            key_pages.data_ptr(),
            value_pages.data_ptr(),
            num_pages,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            scaling,
            softcap or 0.0,
            sliding_window or 0,
            out.data_ptr(),
            torch.get_num_threads(),
        )
    except IndexError as error:
        raise PageIndexError(f"a page does not exist: {error}") from None
    return out


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
    _check_call(query, key_pages, value_pages, plan, sliding_window, softcap)
    group = query.shape[1] // key_pages.shape[1]
    out = query.new_empty((*query.shape[:2], value_pages.shape[3]))
    starts = plan.query_starts.tolist()
    for row, context in enumerate(plan.context_lens.tolist()):
        tokens = slice(starts[row], starts[row + 1])
        pages = plan.page_tables[row, : -(-context // PAGE_SIZE)].long()
        if pages.numel() and not 0 <= int(pages.min()) <= int(pages.max()) < key_pages.shape[0]:
            raise PageIndexError(f"a page does not exist: row {row} has the pages {pages.tolist()}")
        key = key_pages[pages].permute(1, 0, 3, 2).flatten(1, 2)[:, :context].double().repeat_interleave(group, 0)
        value = value_pages[pages].permute(1, 0, 2, 3).flatten(1, 2)[:, :context].double().repeat_interleave(group, 0)
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


def _check_plan(plan: AttentionPlan) -> None:
    starts, lens, tables = plan.query_starts, plan.context_lens, plan.page_tables
    for name, tensor, dims in (("query_starts", starts, 1), ("context_lens", lens, 1), ("page_tables", tables, 2)):
        if tensor.dtype is not torch.int32 or not tensor.is_cpu or tensor.dim() != dims:
            raise TensorArgumentError(
                f"{name} must be int32 with {dims} dimensions on the CPU, not {list(tensor.shape)} of {tensor.dtype} "
                f"on {tensor.device}"
            )
        if tensor.stride(-1) != 1 and tensor.shape[-1] > 1:
            raise TensorArgumentError(f"the last dimension of {name} must be contiguous")
    rows = lens.shape[0]
    if starts.shape[0] != rows + 1 or tables.shape[0] != rows:
        raise TensorArgumentError(
            f"{rows} context_lens need {rows + 1} query_starts and {rows} page_tables, not {starts.shape[0]} and "
            f"{tables.shape[0]}"
        )


def _check_call(
    query: Tensor,
    key_pages: Tensor,
    value_pages: Tensor,
    plan: AttentionPlan,
    sliding_window: int | None,
    softcap: float | None,
) -> None:
    check_pages(key_pages, value_pages)
    tokens = plan.cpu_tables().num_tokens
    _, kv_heads, head_dim, _ = key_pages.shape
    shape = query.shape
    if len(shape) != 3 or shape[0] != tokens or shape[2] != head_dim or shape[1] == 0 or shape[1] % kv_heads:
        raise TensorArgumentError(
            f"query must be [{tokens}, a multiple of {kv_heads} heads, {head_dim}] for this plan and these pages, "
            f"not {list(shape)}"
        )
    if query.dtype is not key_pages.dtype or not query.is_cpu:
        raise TensorArgumentError(
            f"query must be {key_pages.dtype} on the CPU, as the pages are, not {query.dtype} on {query.device}"
        )
    if query.stride(2) != 1 and head_dim > 1:
        raise TensorArgumentError(
            f"the last dimension of query must be contiguous, but its strides are {query.stride()}"
        )
    if sliding_window is not None and sliding_window < 1:
        raise SettingError(f"sliding_window is {sliding_window}; it must be above zero, or None")
    if softcap is not None and not softcap > 0:
        raise SettingError(f"softcap is {softcap}; it must be above zero, or None")
