"""Inputs of the decode tests: rows over shuffled token-major pages whose unwritten slots hold NaN and infinities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from ops.attention_cases import Heads
from torch import Tensor

from ruprompt_fast.ops import token_major_page_shapes, write_kv_token_major_reference
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
BORDERS = [0, 1, 15, 16, 17, 31, 32, 33]


class DecodeCase(NamedTuple):
    """The operator's tensors, and its keyword ``scaling``."""

    query: Tensor
    key_pages: Tensor
    value_pages: Tensor
    block_tables: Tensor
    context_lens: Tensor
    scaling: float

    @property
    def arguments(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return self.query, self.key_pages, self.value_pages, self.block_tables, self.context_lens

    def run(self, function: Any, **settings: Any) -> Tensor:
        return function(*self.arguments, scaling=self.scaling, **settings)


def make_decode_case(
    contexts: Sequence[int],
    shape: Heads | None = None,
    dtype: torch.dtype = torch.float32,
    blocks: int | None = None,
    seed: int = 0,
) -> DecodeCase:
    """Random queries, keys and values for rows of these contexts.

    The block tables are views of wider ones, and hold pages that do not exist after a row's context.
    """
    shape = shape or Heads()
    generator = torch.Generator().manual_seed(seed)
    counts = [-(-context // PAGE_SIZE) for context in contexts]
    blocks = max(counts, default=0) + 1 if blocks is None else blocks
    free = torch.randperm(sum(counts) + 1, generator=generator).int()
    tables = torch.full((len(contexts), blocks + 3), 10**6, dtype=torch.int32)
    for row, (count, pages) in enumerate(zip(counts, free[: sum(counts)].split(counts), strict=True)):
        tables[row, :count] = pages
    shapes = token_major_page_shapes(len(free), shape.kv_heads, shape.head_dim, shape.value_dim)
    key_pages, value_pages = (torch.full(size, float("nan"), dtype=dtype) for size in shapes)
    key_pages[:, :, ::2], value_pages[:, :, 1::2] = float("inf"), float("-inf")
    rows = [
        tables[row, torch.arange(context) // PAGE_SIZE] * PAGE_SIZE + torch.arange(context) % PAGE_SIZE
        for row, context in enumerate(contexts)
    ]
    slots = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64)
    key = torch.randn(len(slots), shape.kv_heads, shape.head_dim, generator=generator).to(dtype)
    value = torch.randn(len(slots), shape.kv_heads, shape.value_dim, generator=generator).to(dtype)
    write_kv_token_major_reference(key, value, key_pages, value_pages, slots)
    query = torch.randn(len(contexts), shape.heads, shape.head_dim, generator=generator).to(dtype)
    context_lens = torch.tensor(contexts, dtype=torch.int32)
    return DecodeCase(query, key_pages, value_pages, tables[:, :blocks], context_lens, shape.head_dim**-0.5)
