"""Attention of prefill: our kernel over pages, pages gathered for torch's kernel, torch's over keys without pages.

The first takes the pages where they are, the last shows what torch does where nothing is to be gathered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from kernel_cases import NEEDS_CARD, ROUNDS, captured
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from ruprompt_fast.ops import HostLens
from ruprompt_fast.ops.token_major_pages import PAGE_SIZE, token_major_page_shapes

CANDIDATES = ["our kernel", "gathered", "dense"]


class Shape(NamedTuple):
    """Sequences of one context, of which the last tokens are new, and the layer's heads."""

    sequences: int
    new: int
    context: int
    heads: int = 16
    kv_heads: int = 16
    head_dim: int = 96

    def __str__(self) -> str:
        heads = f"{self.heads}/{self.kv_heads} heads of {self.head_dim}"
        return f"{self.sequences} x {self.new} tokens of {self.context}, {heads}"


SHAPES = [Shape(8, 64, 164), Shape(1, 512, 512), Shape(1, 512, 4096), Shape(4, 128, 1024, 32, 8, 128)]


class Data:
    """The inputs of every candidate for one shape, on a device."""

    def __init__(self, shape: Shape, device: str, dtype: torch.dtype) -> None:
        sequences, new, context, heads, kv_heads, head_dim = shape
        blocks = -(-context // PAGE_SIZE)
        sizes = token_major_page_shapes(sequences * blocks, kv_heads, head_dim, head_dim)
        self.shape = shape
        self.key_pages, self.value_pages = (torch.randn(size, device=device).to(dtype) for size in sizes)
        self.block_tables = torch.randperm(sequences * blocks, device=device).int().view(sequences, blocks)
        self.query = torch.randn(sequences * new, heads, head_dim, device=device).to(dtype)
        starts = torch.arange(sequences + 1, dtype=torch.int32) * new
        lens = torch.full((sequences,), context, dtype=torch.int32)
        self.host_lens = HostLens(starts.numpy(), lens.numpy())
        self.query_starts, self.context_lens = starts.to(device), lens.to(device)
        self.scaling = head_dim**-0.5

    def ours(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        return function(
            self.query,
            self.key_pages,
            self.value_pages,
            self.query_starts,
            self.context_lens,
            self.block_tables,
            *arguments,
            scaling=self.scaling,
        )

    def dense(self) -> Callable[[], Tensor]:
        """Torch's attention of padded sequences, whose keys are made before."""
        query = self.query.unflatten(0, (-1, self.shape.new)).transpose(1, 2)
        key, value = (
            pages[self.block_tables.long()].transpose(1, 2).flatten(2, 3)[:, :, : self.shape.context]
            for pages in (self.key_pages, self.value_pages)
        )
        key, value = (part.repeat_interleave(query.shape[1] // part.shape[1], 1) for part in (key, value))
        mask = causal_lower_right(self.shape.new, self.shape.context)
        return lambda: scaled_dot_product_attention(query, key, value, mask, scale=self.scaling)

    def run(self, candidate: str) -> Callable[[], Tensor]:
        """What a candidate does in a layer."""
        from ruprompt_fast.ops.cuda.cards import card_of
        from ruprompt_fast.ops.cuda.gathered_prefill import gathered_prefill
        from ruprompt_fast.ops.cuda.paged_prefill import paged_prefill_cuda
        from ruprompt_fast.ops.cuda.varlen_attention import varlen_kernel

        if candidate == "dense":
            return self.dense()
        if candidate == "our kernel":
            return lambda: self.ours(paged_prefill_cuda)
        kernel = varlen_kernel(self.query, self.value_pages, None, card_of(self.query.device))
        if kernel is None:
            pytest.skip("torch has no kernel of packed sequences for this card")
        return lambda: self.ours(gathered_prefill, self.host_lens, kernel)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def data(request: pytest.FixtureRequest) -> Data:
    return Data(request.param, "cuda", torch.float16)


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
def bench_paged_prefill(benchmark: Any, data: Data, candidate: str) -> None:
    benchmark.group = str(data.shape)
    benchmark.pedantic(captured(data.run(candidate)), rounds=ROUNDS, warmup_rounds=5)
