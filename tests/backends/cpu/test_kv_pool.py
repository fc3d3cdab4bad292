"""The pool of pages: sizes, copies, the way to host memory and back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ruprompt_fast.backends.cpu.kv_pool import KVPool
from ruprompt_fast.cache import HostPages
from ruprompt_fast.errors import SettingError, TensorArgumentError
from ruprompt_fast.ops import write_kv
from ruprompt_fast.ops.cpu.kv_pages import PAGE_SIZE
from ruprompt_fast.prompts import KVShape

LAYERS = [KVShape(1, 2, 4, 6), KVShape(1, 1, 8), KVShape(1, 3, 5, 1)]
LENGTHS = [1, 15, 16, 17, 31, 32, 33]


def random_pool(num_pages: int = 9, dtype: torch.dtype = torch.float32, seed: int = 0) -> KVPool:
    pool = KVPool(LAYERS, num_pages, dtype)
    generator = torch.Generator().manual_seed(seed)
    for pages in (*pool.keys, *pool.values):
        pages.copy_(torch.randn(pages.shape, generator=generator))
    return pool


def tensors(pool: KVPool) -> list[torch.Tensor]:
    return [*pool.keys, *pool.values]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_page_takes_the_bytes_that_it_says(dtype: torch.dtype) -> None:
    pool = KVPool(LAYERS, 5, dtype)
    assert sum(pages.nbytes for pages in tensors(pool)) == 5 * pool.page_bytes
    assert all(pages.dtype == dtype and len(pages) == 5 for pages in tensors(pool))
    tokens = sum(layer.num_key_value_heads * (layer.head_dim + layer.value_width) for layer in LAYERS)
    assert pool.page_bytes == PAGE_SIZE * tokens * dtype.itemsize


def test_slots_that_were_never_written_hold_zeros() -> None:
    assert not any(bool(pages.any()) for pages in tensors(KVPool(LAYERS, 3, torch.bfloat16)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the resident size from /proc")
def test_a_page_takes_memory_when_it_is_written() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    pool = KVPool([KVShape(8, 16, 64)], 512, torch.float32)
    assert 512 * pool.page_bytes == 512 << 20
    pool.copy_pages(np.array([[0, 511]]))
    assert resident_bytes() - before < 64 << 20


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(SettingError, match="at least one attention layer"):
        KVPool([], 1, torch.float32)
    with pytest.raises(SettingError, match="num_pages=0"):
        KVPool(LAYERS, 0, torch.float32)


@pytest.mark.parametrize("copies", [[], [[0, 1]], [[3, 4], [4, 5], [2, 4]]])
def test_copies_are_made_in_order_in_every_layer(copies: list[list[int]]) -> None:
    pool, expected = random_pool(), random_pool()
    for source, destination in copies:
        for pages in tensors(expected):
            pages[destination] = pages[source]
    pool.copy_pages(np.array(copies, dtype=np.int32).reshape(-1, 2))
    assert all(map(torch.equal, tensors(pool), tensors(expected)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pages", [[], [0], [8, 2], [7, 1, 4]])
def test_pages_come_back_to_other_places(pages: list[int], dtype: torch.dtype) -> None:
    pool, before = random_pool(dtype=dtype), random_pool(dtype=dtype)
    copy = pool.read_pages(np.array(pages, dtype=np.int32))
    assert copy.num_pages == len(pages)
    assert copy.num_bytes == len(pages) * pool.page_bytes
    for tensor in tensors(pool):
        tensor.zero_()
    places = [3, 0, 5][: len(pages)]
    pool.write_pages(places, copy)
    for tensor, original in zip(tensors(pool), tensors(before), strict=True):
        assert torch.equal(tensor[places], original[pages])
        assert not tensor[[page for page in range(9) if page not in places]].any()


@pytest.mark.parametrize("length", LENGTHS)
def test_packed_pages_are_those_that_the_model_would_write(length: int) -> None:
    generator = torch.Generator().manual_seed(length)
    keys = [torch.randn(length, layer.num_key_value_heads, layer.head_dim, generator=generator) for layer in LAYERS]
    values = [
        torch.randn(length, layer.num_key_value_heads, layer.value_width, generator=generator) for layer in LAYERS
    ]
    pool, expected = KVPool(LAYERS, 4, torch.float32), KVPool(LAYERS, 4, torch.float32)
    pages = np.array([2, 0, 3])[: -(-length // PAGE_SIZE)]
    pool.write_pages(pages, pool.pack(keys, values))
    slots = torch.from_numpy((pages[:, None] * PAGE_SIZE + np.arange(PAGE_SIZE)).reshape(-1)[:length])
    for index in range(len(LAYERS)):
        write_kv(keys[index], values[index], expected.keys[index], expected.values[index], slots)
    assert all(map(torch.equal, tensors(pool), tensors(expected)))


def test_what_does_not_fit_the_pool_is_refused() -> None:
    pool = random_pool()
    copy = pool.read_pages([1, 2])
    for pages in ([9], [0, -1]):
        with pytest.raises(TensorArgumentError, match=r"pages must be in 0 \.\. 8"):
            pool.read_pages(pages)
    with pytest.raises(TensorArgumentError, match="must be 3 pages of 3 layers"):
        pool.write_pages([1, 2, 3], copy)
    with pytest.raises(TensorArgumentError, match=r"torch\.bfloat16"):
        random_pool(dtype=torch.bfloat16).write_pages([1, 2], copy)
    with pytest.raises(TensorArgumentError, match="must be 2 pages of 3 layers"):
        pool.write_pages([1, 2], HostPages(copy.keys[:2], copy.values[:2]))
    with pytest.raises(TensorArgumentError, match="must have the shapes"):
        pool.pack([torch.zeros(3, 2, 4)], [torch.zeros(3, 2, 6)])
    with pytest.raises(TensorArgumentError, match="must have the shapes"):
        pool.pack([], [])
