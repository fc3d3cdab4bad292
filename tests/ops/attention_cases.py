"""Inputs of the attention tests: rows over shuffled pages whose unwritten slots hold NaN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ruprompt_fast.ops import AttentionPlan, kv_page_shapes, write_kv_reference
from ruprompt_fast.ops.cpu.kv_pages import PAGE_SIZE


class Heads(NamedTuple):
    """A layer's shape."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    value_dim: int = 16


class Row(NamedTuple):
    """A sequence: its tokens in the cache, its query tokens, the leading pages that it shares with the row before."""

    context: int
    queries: int = 1
    shared_pages: int = 0


class Case(NamedTuple):
    """The operator's tensors, and its keyword ``scaling``."""

    query: Tensor
    key_pages: Tensor
    value_pages: Tensor
    plan: AttentionPlan
    scaling: float

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, AttentionPlan]:
        return self.query, self.key_pages, self.value_pages, self.plan


def make_plan(rows: Sequence[Row], tables: Sequence[Sequence[int]]) -> AttentionPlan:
    """A plan whose block tables are wider than needed, filled with a page that does not exist."""
    width = max((len(table) for table in tables), default=0) + 1
    padded = [[*table, *[10**6] * (width - len(table))] for table in tables]
    slots = []
    for row, table in zip(rows, tables, strict=True):
        positions = range(row.context - row.queries, row.context)
        slots += [table[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE for position in positions]
    starts = torch.tensor([0, *[row.queries for row in rows]]).cumsum(0).int()
    return AttentionPlan(
        query_starts=starts,
        context_lens=torch.tensor([row.context for row in rows], dtype=torch.int32),
        block_tables=torch.tensor(padded, dtype=torch.int32).reshape(len(rows), width),
        write_slots=torch.tensor(slots, dtype=torch.int64),
    )


def make_tables(rows: Sequence[Row], generator: torch.Generator) -> tuple[list[list[int]], int]:
    """Block tables in random order of pages, and the number of pages."""
    total = sum(-(-row.context // PAGE_SIZE) for row in rows) + 1
    free = torch.randperm(total, generator=generator).tolist()
    tables: list[list[int]] = []
    for row in rows:
        shared = tables[-1][: row.shared_pages] if tables else []
        count = -(-row.context // PAGE_SIZE)
        tables.append([*shared, *(free.pop() for _ in range(count - len(shared)))][:count])
    return tables, total


def make_case(
    rows: Sequence[Row], shape: Heads | None = None, dtype: torch.dtype = torch.float32, seed: int = 0
) -> Case:
    """Random queries, keys and values for ``rows``."""
    shape = shape or Heads()
    generator = torch.Generator().manual_seed(seed)
    tables, num_pages = make_tables(rows, generator)
    key_shape, value_shape = kv_page_shapes(num_pages, shape.kv_heads, shape.head_dim, shape.value_dim)
    key_pages, value_pages = (torch.full(size, float("nan"), dtype=dtype) for size in (key_shape, value_shape))
    slots = {
        table[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
        for row, table in zip(rows, tables, strict=True)
        for position in range(row.context)
    }
    key = torch.randn(len(slots), shape.kv_heads, shape.head_dim, generator=generator).to(dtype)
    value = torch.randn(len(slots), shape.kv_heads, shape.value_dim, generator=generator).to(dtype)
    write_kv_reference(key, value, key_pages, value_pages, torch.tensor(sorted(slots), dtype=torch.int64))
    query = torch.randn(sum(row.queries for row in rows), shape.heads, shape.head_dim, generator=generator).to(dtype)
    return Case(query, key_pages, value_pages, make_plan(rows, tables), shape.head_dim**-0.5)


def tables_of(case: Case, rows: Sequence[Row]) -> list[list[int]]:
    """The block tables of a case without their padding."""
    tables: list[list[int]] = case.plan.block_tables.tolist()
    return [table[: -(-row.context // PAGE_SIZE)] for row, table in zip(rows, tables, strict=True)]
