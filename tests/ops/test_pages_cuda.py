"""The kernels over token-major pages on a CUDA device: decoding, writing, copying."""

from __future__ import annotations

import pytest
import torch
from ops.attention_cases import Heads
from ops.decode_cases import BORDERS, DTYPES, DecodeCase, make_decode_case
from tolerances import assert_close

from ruprompt_fast.ops import (
    copy_pages_at_once,
    copy_pages_at_once_reference,
    paged_decode,
    paged_decode_reference,
    token_major_page_shapes,
    write_kv_token_major,
    write_kv_token_major_reference,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [Heads(2, 2, 64, 64), Heads(16, 16, 96, 96), Heads(8, 2, 128, 128), Heads(8, 1, 256, 256), Heads(3, 1, 5, 37)]


def check(case: DecodeCase, **settings: float | int | None) -> None:
    on_device = DecodeCase(*(tensor.cuda() for tensor in case.arguments), case.scaling)
    summed = case._replace(value_pages=case.value_pages.abs()).run(paged_decode_reference, **settings)
    expected = case.run(paged_decode_reference, **settings)
    assert_close(on_device.run(paged_decode, **settings).cpu(), expected, summed=summed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", [{}, {"sliding_window": 17}, {"softcap": 50.0, "sliding_window": 300}], ids=str)
def test_decode(shape: Heads, dtype: torch.dtype, settings: dict) -> None:
    check(make_decode_case([*BORDERS, 256, 257, 700, 4097], shape, dtype), **settings)


def test_decode_in_a_graph_follows_its_buffers() -> None:
    case = make_decode_case([40, 300, 0], dtype=torch.float16)
    inputs = [tensor.cuda() for tensor in case.arguments]
    for _ in range(2):
        paged_decode(*inputs, scaling=case.scaling)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = paged_decode(*inputs, scaling=case.scaling)
    for contexts in ([40, 300, 0], [1, 17, 0], [0, 0, 0]):
        inputs[4].copy_(torch.tensor(contexts))
        graph.replay()
        changed = case._replace(context_lens=torch.tensor(contexts, dtype=torch.int32))
        assert_close(out.cpu(), changed.run(paged_decode_reference))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("head_dim", "value_dim"), [(1, 1), (20, 7), (96, 96), (64, 256)])
def test_write_and_copy(head_dim: int, value_dim: int, dtype: torch.dtype) -> None:
    fused = torch.randn(33, 3, 2 * (head_dim + value_dim)).to(dtype)[:, 1]
    key = fused[:, : 2 * head_dim].unflatten(1, (2, head_dim))
    value = fused[:, 2 * head_dim :].unflatten(1, (2, value_dim))
    slots = torch.randperm(64)[:33].masked_fill(torch.arange(33) % 7 == 0, -1)
    shapes = token_major_page_shapes(4, 2, head_dim, value_dim)
    expected = [torch.zeros(shape, dtype=dtype) for shape in shapes]
    actual = [pages.cuda() for pages in expected]
    write_kv_token_major_reference(key, value, *expected, slots)
    write_kv_token_major(key.cuda(), value.cuda(), *actual, slots.cuda())
    copies = torch.tensor([[0, 3], [1, 2]])
    for pages, device_pages in zip(expected, actual, strict=True):
        copy_pages_at_once_reference(pages[None], copies)
        copy_pages_at_once(device_pages[None], copies.cuda())
        assert torch.equal(device_pages.cpu(), pages)
