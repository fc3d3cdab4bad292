"""Times a kernel beside a plain copy that moves as many bytes, on a CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from gpu.clock import FLUSH_BYTES
from gpu.kernels import CASES, Case
from gpu.measurement import ROOT, Setting

NEEDS_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
SETTING = Setting("cuda", False, ROOT)
CANDIDATES = ["copy", "kernel"]
ROUNDS = 100


def cases_of(kernel: str) -> Sequence[str]:
    """The names of a kernel's cases."""
    return [name for name in CASES if name.startswith(f"{kernel},")]


def time_beside_copy(benchmark: Any, name: str, case: Case, candidate: str) -> None:
    """Time one of ``CANDIDATES``; the kernel's ratio to the copy, the first, is that of the times for equal bytes."""
    benchmark.group = f"{name}, {case.num_bytes / 2**20:.1f} MiB"
    source = torch.ones(case.num_bytes // 2, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    replay = captured(case.run if candidate == "kernel" else lambda: target.copy_(source))
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")

    def empty_caches() -> None:
        flush.zero_()
        torch.cuda.synchronize()

    benchmark.pedantic(replay, setup=empty_caches, rounds=ROUNDS, warmup_rounds=5)


def captured(run: Callable[[], Any]) -> Callable[[], None]:
    """What launches the same kernels as a CUDA graph, as decoding does, and waits for them."""
    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> None:
        graph.replay()
        torch.cuda.synchronize()

    return replay
