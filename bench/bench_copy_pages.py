"""Copying pages of all layers in one launch against a copy of as many bytes that lie together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gpu.kernels import Case
from kernel_cases import CANDIDATES, NEEDS_CARD, time_beside_copy

from ruprompt_fast.ops import copy_pages_at_once, copy_pages_at_once_reference, token_major_page_shapes

LAYERS, PAGES, HEADS, DIM = 24, 1024, 16, 96


def pages_case(copies: int) -> Case:
    """ruGPT-3 Large's keys; pages that lie anywhere."""
    shape, _ = token_major_page_shapes(PAGES, HEADS, DIM, DIM)
    pages = torch.ones(LAYERS, *shape, dtype=torch.float16, device="cuda")
    pairs = torch.randperm(PAGES, device="cuda")[: 2 * copies].view(-1, 2)
    return Case(
        lambda: copy_pages_at_once(pages, pairs),
        lambda: copy_pages_at_once_reference(pages, pairs),
        2 * copies * LAYERS * pages[0, 0].nbytes,
    )


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("copies", [1, 16, 256])
def bench_copy_pages(benchmark: Any, copies: int, candidate: str) -> None:
    time_beside_copy(benchmark, f"{copies} pages", pages_case(copies), candidate)
