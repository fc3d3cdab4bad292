"""The mixed workload: 96 requests over 6 prompts in the shapes of ruPrompts' published ones, against who runs one.

60 to 100 leading and 20 trailing rows, inputs of 8 to 120 tokens, 8 to 128 new tokens, new texts in every round.
ruPrompts and PEFT run prompt after prompt, each as one padded batch until its longest output is done; PEFT's rows all
lead. Wanted: float32 6 times as fast as either, bfloat16 12 times.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from engine_models import QUICK, random_prompt, text_of, write_gpt2
from peers import Ours, System, Task, Transformers
from prompt_peers import Peft, RuPrompts
from turns import Candidate, Timing, clock, in_turns, names, report

NUM_REQUESTS = 12 if QUICK else 96
INPUT_TOKENS = (2, 8) if QUICK else (8, 120)
NEW_TOKENS = (2, 8) if QUICK else (8, 128)
LEADING_ROWS = (60, 68, 76, 84, 92, 100)
TRAILING_ROWS = 20
OUR_ROUNDS, PEER_ROUNDS = (1, 1) if QUICK else (3, 1)

SYSTEMS = ["ours float32", "ours bfloat16", "ruPrompts", "PEFT"]
# Random weights have near-ties, which the order of a sum may decide: a text may then go another way from there on.
SAME_TEXTS = 0.95

pytestmark = pytest.mark.benchmark(timer=clock)


def lengths() -> list[tuple[int, int]]:
    """Tokens of input and output of every request, the same in every round."""
    generator = random.Random(0)
    return [(generator.randint(*INPUT_TOKENS), generator.randint(*NEW_TOKENS)) for _ in range(NUM_REQUESTS)]


def tasks(words: list[str], round: int) -> list[Task]:
    generator = random.Random(1 + round)
    return [
        Task(text_of(words, num_input, generator), num_new, f"p{index % len(LEADING_ROWS)}")
        for index, (num_input, num_new) in enumerate(lengths())
    ]


def candidates(folder: Path) -> dict[str, Callable[[], Candidate]]:
    words = write_gpt2(folder)
    prompts = {
        f"p{seed}": random_prompt(f"<P*{leading}>{{text}}<P*{TRAILING_ROWS}>", leading + TRAILING_ROWS, seed)
        for seed, leading in enumerate(LEADING_ROWS)
    }

    def candidate(system: System, rounds: int) -> Candidate:
        ours = isinstance(system, Ours)
        return Candidate(lambda round: system.generate(tasks(words, round)), rounds=rounds, warm_up=ours)

    return {
        "ours float32": lambda: candidate(Ours(folder, "float32", prompts), OUR_ROUNDS),
        "ours bfloat16": lambda: candidate(Ours(folder, "bfloat16", prompts), OUR_ROUNDS),
        "ruPrompts": lambda: candidate(RuPrompts(Transformers.from_folder(folder), prompts), PEER_ROUNDS),
        "PEFT": lambda: candidate(Peft(Transformers.from_folder(folder), prompts), PEER_ROUNDS),
    }


@pytest.fixture(scope="module")
def timings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Timing]:
    measured = in_turns(candidates(tmp_path_factory.mktemp("gpt2")))
    ours, theirs = measured["ours float32"].output, measured["ruPrompts"].output
    same = sum(ids == others for ids, others in zip(ours, theirs, strict=True))
    assert same >= SAME_TEXTS * NUM_REQUESTS, f"{same} of {NUM_REQUESTS} texts are those of ruPrompts"
    return measured


@names(SYSTEMS)
def bench_mixed(benchmark: Any, timings: dict[str, Timing], candidate: str) -> None:
    benchmark.group = f"{NUM_REQUESTS} requests over {len(LEADING_ROWS)} prompts"
    timing = timings[candidate]
    if timing.skipped is None:
        assert [len(ids) for ids in timing.output] == [num_new for _, num_new in lengths()]
    report(benchmark, timing, sum(num_new for _, num_new in lengths()))
