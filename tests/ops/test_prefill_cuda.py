"""Prefill, and decoding after shared prefixes, on a CUDA device."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest
import torch
from ops.attention_cases import Heads, Row
from ops.decode_cases import BORDERS, DTYPES
from ops.prefill_cases import PrefillCase, make_prefill_case
from ops.prefix_cases import Group, PrefixCase, make_prefix_case
from tolerances import PRODUCT_ERROR, assert_close
from torch import Tensor

from ruprompt_fast.ops import (
    paged_prefill,
    paged_prefill_reference,
    prefix_decode,
    prefix_decode_reference,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SHAPES = [Heads(2, 2, 64, 64), Heads(16, 16, 96, 96), Heads(8, 2, 128, 128), Heads(8, 1, 256, 256), Heads(3, 1, 5, 37)]
SETTINGS = [{}, {"sliding_window": 17}, {"softcap": 50.0, "sliding_window": 300}]
MIXED = [*[Row(n, n) for n in BORDERS], Row(700, 19), Row(4097, 70), Row(1, 1), Row(40, 1), Row(33, 0), Row(4097, 1)]
GROUPS = [Group(96, (97, 300, 4097)), Group(0, (5, 0, 17)), Group(16, tuple(range(16, 90))), Group(0, ())]
C = TypeVar("C", PrefillCase, PrefixCase)


def on_device(case: C) -> C:
    return case._replace(**{name: part.cuda() for name, part in case._asdict().items() if torch.is_tensor(part)})


def check(actual: Tensor, case: PrefillCase | PrefixCase, reference: Any, **settings: Any) -> None:
    summed = case._replace(value_pages=case.value_pages.abs()).run(reference, **settings)
    assert_close(actual.cpu(), case.run(reference, **settings), PRODUCT_ERROR, summed=summed)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_prefill(shape: Heads, dtype: torch.dtype, settings: dict) -> None:
    case = make_prefill_case(MIXED, shape, dtype, padding=3)
    for host_lens in (None, case.host_lens):
        actual = on_device(case).run(paged_prefill, **settings, host_lens=host_lens)
        check(actual, case, paged_prefill_reference, **settings)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_prefill_of_gathered_pages(shape: Heads, dtype: torch.dtype) -> None:
    from ruprompt_fast.ops.cuda.gathered_prefill import gathered_prefill
    from ruprompt_fast.ops.cuda.varlen_attention import EFFICIENT

    case = make_prefill_case(MIXED, shape, dtype, padding=3)
    actual = on_device(case).run(gathered_prefill, case.host_lens, EFFICIENT)
    check(actual, case, paged_prefill_reference)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_prefix(shape: Heads, dtype: torch.dtype, settings: dict) -> None:
    case = make_prefix_case(GROUPS, shape, dtype, padding=2)
    check(on_device(case).run(prefix_decode, **settings), case, prefix_decode_reference, **settings)


def test_nothing_waits_for_the_device() -> None:
    prefill, prefix = make_prefill_case(MIXED, dtype=torch.float16), make_prefix_case(GROUPS, dtype=torch.float16)
    host_lens, prefill, prefix = prefill.host_lens, on_device(prefill), on_device(prefix)
    for mode in ("default", "error"):
        # The first round compiles.
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode(mode)
        try:
            prefill.run(paged_prefill)
            prefill.run(paged_prefill, host_lens=host_lens)
            prefix.run(prefix_decode)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_prefixes_in_a_graph_follow_their_buffers() -> None:
    case = make_prefix_case([Group(32, (33, 60, 47)), Group(0, (40,))], dtype=torch.float16)
    inputs = on_device(case)
    inputs.run(prefix_decode)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = inputs.run(prefix_decode)
    for starts, prefix_lens in [([0, 3, 4], [32, 32, 32, 0]), ([0, 2, 2], [16, 16, 0, 0]), ([0, 4, 4], [0, 0, 0, 0])]:
        changed = case._replace(
            group_starts=torch.tensor(starts, dtype=torch.int32),
            prefix_lens=torch.tensor(prefix_lens, dtype=torch.int32),
        )
        inputs.group_starts.copy_(changed.group_starts)
        inputs.prefix_lens.copy_(changed.prefix_lens)
        graph.replay()
        check(out, changed, prefix_decode_reference)
