"""Decoding after a prefix that all rows share: each row for itself, and the prefix once for all of them.

A group's name says which way the rule takes; the ratio says which way is faster on this card.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from kernel_cases import NEEDS_CARD, ROUNDS, captured
from torch import Tensor

from ruprompt_fast.ops import paged_decode, prefix_decode
from ruprompt_fast.ops.cuda.cards import card_of
from ruprompt_fast.ops.cuda.prefix_rule import prefix_decode_pays
from ruprompt_fast.ops.prefix_decode import shared_prefix_groups
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE, token_major_page_shapes

CANDIDATES = ["prefix_decode", "paged_decode"]
# ruGPT-3 Large's layers; every row has so many tokens of its own after the prefix.
HEADS, HEAD_DIM, OWN_TOKENS = 16, 96, 100


class Shape(NamedTuple):
    """Rows, and the tokens of the prefix that they share."""

    rows: int
    prefix: int


SHAPES = [Shape(rows, prefix) for prefix in (96, 512, 2048) for rows in (2, 8, 16, 32, 64)]


class Data:
    """The inputs of both ways for one shape, on a device."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        shared, own = shape.prefix // PAGE_SIZE, -(-OWN_TOKENS // PAGE_SIZE)
        num_pages = shared + shape.rows * own
        sizes = token_major_page_shapes(num_pages, HEADS, HEAD_DIM, HEAD_DIM)
        order = torch.randperm(num_pages).int()
        tables = torch.cat([order[:shared].expand(shape.rows, -1), order[shared:].view(shape.rows, own)], 1)
        lens = np.full(shape.rows, shape.prefix + OWN_TOKENS, np.int32)
        found = shared_prefix_groups(tables.numpy(), lens, PAGE_SIZE)
        self.pays = prefix_decode_pays(
            found,
            token_bytes=2 * HEADS * HEAD_DIM * torch.finfo(dtype).bits // 8,
            row_bytes=HEADS * HEAD_DIM * 4,
            card=card_of(torch.device(device)),
        )
        self.key_pages, self.value_pages = (torch.randn(size, device=device).to(dtype) for size in sizes)
        self.query = torch.randn(shape.rows, HEADS, HEAD_DIM, device=device).to(dtype)
        self.block_tables, self.context_lens = tables.to(device), torch.from_numpy(lens).to(device)
        # As many groups as a CUDA graph of this batch has room for; those after the last one are empty.
        starts = np.pad(found.group_starts, (0, shape.rows + 1 - len(found.group_starts)), mode="edge")
        self.groups = tuple(torch.from_numpy(part).to(device) for part in (starts, found.prefix_lens))

    def run(self, candidate: str) -> Callable[[], Tensor]:
        """What a way does in a layer."""
        arguments = (self.query, self.key_pages, self.value_pages, self.block_tables, self.context_lens)
        if candidate == "paged_decode":
            return lambda: paged_decode(*arguments, scaling=HEAD_DIM**-0.5)
        return lambda: prefix_decode(*arguments, *self.groups, scaling=HEAD_DIM**-0.5)


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_prefix_decode(benchmark: Any, shape: Shape, candidate: str) -> None:
    data = Data(shape, "cuda", torch.float16)
    benchmark.group = f"{shape.rows} rows after {shape.prefix} tokens, the rule takes {CANDIDATES[not data.pays]}"
    benchmark.pedantic(captured(data.run(candidate)), rounds=ROUNDS, warmup_rounds=5)
