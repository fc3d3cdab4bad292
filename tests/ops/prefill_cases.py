"""Inputs of the prefill tests: packed sequences over token-major pages whose unwritten slots are not finite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from ops.attention_cases import Heads, Row
from ops.decode_cases import make_decode_case
from torch import Tensor

from ruprompt_fast.ops import AttentionPlan, HostLens, paged_attention_reference


class PrefillCase(NamedTuple):
    """The operator's tensors, and its keyword ``scaling``."""

    query: Tensor
    key_pages: Tensor
    value_pages: Tensor
    query_starts: Tensor
    context_lens: Tensor
    block_tables: Tensor
    scaling: float

    @property
    def host_lens(self) -> HostLens:
        return HostLens(self.query_starts.numpy(), self.context_lens.numpy())

    def run(self, function: Any, *arguments: Any, **settings: Any) -> Tensor:
        return function(*self[:6], *arguments, scaling=self.scaling, **settings)


def make_prefill_case(
    rows: Sequence[Row],
    shape: Heads | None = None,
    dtype: torch.dtype = torch.float32,
    padding: int = 0,
    seed: int = 0,
) -> PrefillCase:
    """Random queries, keys and values for ``rows``, and for ``padding`` tokens after them, which are not finite."""
    shape = shape or Heads()
    pages = make_decode_case([row.context for row in rows], shape, dtype, seed=seed)
    starts = torch.tensor([0, *[row.queries for row in rows]]).cumsum(0).int()
    generator = torch.Generator().manual_seed(seed + 1)
    query = torch.randn(int(starts[-1]) + padding, shape.heads, shape.head_dim, generator=generator).to(dtype)
    query[int(starts[-1]) :] = float("nan")
    return PrefillCase(
        query, pages.key_pages, pages.value_pages, starts, pages.context_lens, pages.block_tables, pages.scaling
    )


def through_the_other_layout(case: PrefillCase, **settings: Any) -> Tensor:
    """The same by the CPU's operator, whose keys lie otherwise; zeros for padding."""
    tokens = int(case.query_starts[-1])
    plan = AttentionPlan(
        query_starts=case.query_starts,
        context_lens=case.context_lens,
        block_tables=case.block_tables.contiguous(),
        write_slots=torch.zeros(0, dtype=torch.int64),
    )
    out = case.query.new_zeros(*case.query.shape[:2], case.value_pages.shape[3])
    out[:tokens] = paged_attention_reference(
        case.query[:tokens],
        case.key_pages.transpose(2, 3).contiguous(),
        case.value_pages,
        plan,
        scaling=case.scaling,
        **settings,
    )
    return out
