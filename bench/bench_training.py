"""Training a prompt: our trainer against transformers' Trainer with ruPrompts' embedding layer, and against PEFT.

Batches of 16 texts of 40 to 90 tokens, labels on the second half; in float32 on a CPU, in float16 with a scaled loss on
a GPU. All candidates see the same batches and rows, and their losses agree step by step. Tokens are those of the texts;
rows and padding do not count. Wanted on a CPU: with 100 rows 4 times as fast as the faster of the others with at most
0.35 of its peak memory, with 20 rows twice as fast; on a GPU, in ruGPT-3 Large's shape
(``RUPROMPT_BENCH_MODEL=large``), 3 times as fast as PEFT with 100 rows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine_models import QUICK
from training_data import BATCH_SIZE, TOKENS_PER_BATCH
from training_peers import DTYPE, Setting, TrainingProcess
from turns import Candidate, Timing, clock, in_turns, names, report

ROUNDS = 1 if QUICK else 4
NUM_ROWS = [20] if QUICK else [100, 20]
SYSTEMS = ["ours", "ruPrompts", "PEFT"]

# Relative, between sums over other shapes; each step's rows follow from the gradients of those before.
SAME_LOSS = {torch.float32: 1e-4, torch.float16: 1e-2}[DTYPE]

Compare = Callable[[int], tuple[dict[str, Timing], dict[str, int]]]

pytestmark = pytest.mark.benchmark(timer=clock)


@pytest.fixture(scope="module")
def compare() -> Compare:
    """Timings and peak bytes by candidate, for a prompt of so many rows."""

    @functools.cache
    def measured(num_rows: int) -> tuple[dict[str, Timing], dict[str, int]]:
        setting = Setting(None, num_rows, num_steps=1 + ROUNDS)
        processes: dict[str, TrainingProcess] = {}

        def candidate(name: str) -> Candidate:
            processes[name] = TrainingProcess(name, setting)
            return Candidate(lambda round: processes[name].step(), rounds=ROUNDS)

        try:
            timings = in_turns({name: functools.partial(candidate, name) for name in SYSTEMS})
        finally:
            for process in processes.values():
                process.close()
        losses = {name: [step.loss for step in process.steps] for name, process in processes.items()}
        for name, theirs in losses.items():
            assert theirs == pytest.approx(losses["ours"], rel=SAME_LOSS), f"the losses of {name} are not ours"
        return timings, {name: process.steps[-1].peak_bytes for name, process in processes.items()}

    return measured


@pytest.mark.parametrize("num_rows", NUM_ROWS)
@names(SYSTEMS)
def bench_training(benchmark: Any, compare: Compare, candidate: str, num_rows: int) -> None:
    benchmark.group = f"a training step of {BATCH_SIZE} texts, {num_rows} rows"
    timings, peak_bytes = compare(num_rows)
    report(benchmark, timings[candidate], TOKENS_PER_BATCH, peak_bytes.get(candidate))
