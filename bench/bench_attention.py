"""One layer's decode attention over pages against the library's, for twelve heads of 64.

"one by one" is a cache of one contiguous tensor per sequence and one library call for each, as transformers'
``DynamicCache`` keeps it; "padded" is one library call for the whole batch, whose sequences all have the full length,
so that nothing is lost to padding. Every call takes the next of several layers, so that keys and values come from
memory as in a model. In the group of a shared prefix the second candidate has the same rows with pages of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ruprompt_fast.ops import kv_page_shapes, write_kv
from ruprompt_fast.ops.cpu.paged_attention import AttentionTables, paged_attention_cpu

HEADS, WIDTH = 12, 64
SCALING = WIDTH**-0.5
# All layers together are larger than the third-level cache, as far as this many bytes allow.
LAYER_BYTES = 200 << 20


class Layer(NamedTuple):
    """The same keys and values twice: contiguous ``[rows, heads, context, width]``, and in pages."""

    keys: Tensor
    values: Tensor
    key_pages: Tensor
    value_pages: Tensor


class Data:
    """The inputs of every candidate: ``rows`` sequences, whose first ``prefix`` tokens are the same."""

    def __init__(self, rows: int, context: int, dtype: torch.dtype, prefix: int = 0) -> None:
        self.query = torch.randn(rows, HEADS, WIDTH).to(dtype)
        self.blocks = self.block_tables(rows, context, prefix)
        positions = torch.arange(context)
        self.slots = (self.blocks[:, positions // 16].long() * 16 + positions % 16).flatten()
        starts, lens = torch.arange(rows + 1, dtype=torch.int32), torch.full((rows,), context, dtype=torch.int32)
        self.tables = AttentionTables.of(starts.numpy(), lens.numpy(), self.blocks.numpy())
        layer_bytes = 2 * self.slots.numel() * HEADS * WIDTH * dtype.itemsize
        count = max(1, min(12, LAYER_BYTES // layer_bytes))
        self.layers = [self.layer(rows, context, prefix, dtype) for _ in range(count)]

    @staticmethod
    def block_tables(rows: int, context: int, prefix: int) -> Tensor:
        pages = -(-context // 16)
        tables = torch.randperm(rows * pages, dtype=torch.int32).view(rows, pages)
        tables[:, : prefix // 16] = tables[0, : prefix // 16]
        return tables

    def layer(self, rows: int, context: int, prefix: int, dtype: torch.dtype) -> Layer:
        keys, values = torch.randn(2, rows, HEADS, context, WIDTH).to(dtype)
        keys[:, :, :prefix], values[:, :, :prefix] = keys[0, :, :prefix], values[0, :, :prefix]
        shapes = kv_page_shapes(self.blocks.numel(), HEADS, WIDTH, WIDTH)
        key_pages, value_pages = (torch.zeros(shape, dtype=dtype) for shape in shapes)
        packed = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (keys, values))
        write_kv(*packed, key_pages, value_pages, self.slots)
        return Layer(keys, values, key_pages, value_pages)

    def paged(self, layer: Layer) -> Tensor:
        return paged_attention_cpu(self.query, layer.key_pages, layer.value_pages, self.tables, scaling=SCALING)

    def padded(self, layer: Layer) -> Tensor:
        return F.scaled_dot_product_attention(self.query[:, :, None], layer.keys, layer.values)[:, :, 0]

    def one_by_one(self, layer: Layer) -> Tensor:
        query, keys, values = self.query[:, None, :, None], layer.keys[:, None], layer.values[:, None]
        parts = [F.scaled_dot_product_attention(*sequence) for sequence in zip(query, keys, values, strict=True)]
        return torch.cat(parts)[:, :, 0]


CANDIDATES: dict[str, Callable[[Data, Layer], Tensor]] = {
    "paged": Data.paged,
    "padded": Data.padded,
    "one by one": Data.one_by_one,
}


def run(benchmark: Any, data: Data, candidate: Callable[[Data, Layer], Tensor]) -> None:
    layers = cycle(data.layers)
    with torch.inference_mode():
        benchmark.pedantic(lambda: candidate(data, next(layers)), rounds=60, warmup_rounds=12)


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(scope="module", params=[100, 512, 2048])
def context(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module", params=[1, 8, 32])
def data(request: pytest.FixtureRequest, context: int, dtype: torch.dtype) -> Data:
    torch.manual_seed(0)
    return Data(request.param, context, dtype)


@pytest.mark.parametrize("candidate", CANDIDATES)
def bench_decode(benchmark: Any, data: Data, context: int, dtype: torch.dtype, candidate: str) -> None:
    layer = data.layers[0]
    torch.testing.assert_close(CANDIDATES[candidate](data, layer), data.paged(layer), rtol=0.02, atol=0.01)
    benchmark.group = f"decode, batch {len(data.query)}, context {context}, {dtype}"
    run(benchmark, data, CANDIDATES[candidate])


@pytest.mark.parametrize("candidate", ["shared", "not shared"])
def bench_shared_prefix(benchmark: Any, dtype: torch.dtype, candidate: str) -> None:
    torch.manual_seed(0)
    benchmark.group = f"100 rows of context 120, 96 of them one prefix, {dtype}"
    run(benchmark, Data(100, 120, dtype, prefix=96 if candidate == "shared" else 0), Data.paged)
