"""Tokens per second while decoding, alone and beside a busy program on one of the processors.

The batch and what is timed are ``bench_decode``'s. The busy program is a loop in Python, once on the first processor
only and once wherever the system puts it. Beside it, on two processors, at least half of the rate alone is wanted.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any

import pytest
from bench_decode import NUM_NEW_TOKENS, compare
from engine_models import QUICK, write_gpt2
from peers import THREADS, CTranslate2, Ours, System, Transformers
from turns import Timing, clock, names, report

BATCHES = (1,) if QUICK else (1, 8)
NEIGHBOURS = ("none", "pinned", "anywhere")
CANDIDATES = ["ours", "ours, all threads", "transformers", "CTranslate2"]

Compare = Callable[[int, str], dict[str, Timing]]

pytestmark = pytest.mark.benchmark(timer=clock)


@contextmanager
def neighbour(where: str) -> Iterator[None]:
    """Within the block, a program that never rests."""
    if where == "none":
        yield
        return
    pin = f"import os; os.sched_setaffinity(0, [{min(os.sched_getaffinity(0))}])\n" if where == "pinned" else ""
    process = subprocess.Popen([sys.executable, "-c", f"{pin}while True: pass"])
    try:
        time.sleep(0.5)  # until it has started
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def compare_beside(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    folder = tmp_path_factory.mktemp("gpt2")
    words = write_gpt2(folder)
    systems: dict[str, Callable[[], System]] = {
        "ours": lambda: Ours(folder, "float32"),
        "ours, all threads": lambda: Ours(folder, "float32", threads=THREADS),
        "transformers": lambda: Transformers.from_folder(folder),
        "CTranslate2": lambda: CTranslate2(folder, "float32"),
    }
    loaded = {name: functools.cache(make) for name, make in systems.items()}

    @functools.cache
    def timings(batch: int, where: str) -> dict[str, Timing]:
        with neighbour(where):
            return compare(loaded, words, batch)

    return timings


@pytest.mark.parametrize("where", NEIGHBOURS)
@pytest.mark.parametrize("batch", BATCHES)
@names(CANDIDATES)
def bench_beside(benchmark: Any, compare_beside: Compare, batch: int, where: str, candidate: str) -> None:
    benchmark.group = f"decode, GPT-2 12 x 768, batch {batch}, busy program: {where}"
    timing, alone = compare_beside(batch, where)[candidate], compare_beside(batch, "none")[candidate]
    if timing.skipped is None:
        benchmark.extra_info["share_of_alone"] = median(alone.seconds) / median(timing.seconds)
    report(benchmark, timing, batch * NUM_NEW_TOKENS)
