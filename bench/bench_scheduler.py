"""One step and commit of the scheduler, as called from Python: 256 requests decode, others wait over 100 prompts."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from ruprompt_fast import _C

PAGE_SIZE, RUNNING, PROMPTS, PREFIX_TOKENS, INPUT_TOKENS = 16, 256, 100, 100, 40
ROUNDS, WARMUP_ROUNDS = 2000, 200
MAX_MODEL_LEN = 4096
NO_HASHES = np.zeros(0, dtype=np.uint64)


def loaded_scheduler(waiting: int, *, room: bool) -> _C.Scheduler:
    """All sequences are taken; or, with room, one is left, and all that wait need two."""
    pages = RUNNING * MAX_MODEL_LEN // PAGE_SIZE + 2 * PROMPTS * PREFIX_TOKENS // PAGE_SIZE
    sequences = RUNNING + 1 if room else RUNNING
    scheduler = _C.Scheduler(pages, PAGE_SIZE, sequences, MAX_MODEL_LEN, 8192)
    for prompt in range(PROMPTS):
        scheduler.add_prefix(prompt, PREFIX_TOKENS)
    request = 0

    def add(count: int, num_tokens: int, max_new: int, max_sequences: int) -> None:
        nonlocal request
        for _ in range(count):
            prompt = request % PROMPTS
            scheduler.add(request, prompt, prompt, num_tokens, max_new, max_sequences, NO_HASHES)
            request += 1

    add(RUNNING, PREFIX_TOKENS + INPUT_TOKENS, MAX_MODEL_LEN - PREFIX_TOKENS - INPUT_TOKENS, 1)
    while scheduler.stats()["running"] < RUNNING or scheduler.step(8192).num_tokens > RUNNING:
        if scheduler.stats()["running"] < RUNNING:
            scheduler.step(8192)
        scheduler.commit([])
    scheduler.commit([])
    add(waiting, PREFIX_TOKENS + INPUT_TOKENS, 1000, 2 if room else 1)
    return scheduler


def step_and_commit(scheduler: _C.Scheduler) -> Callable[[], None]:
    step, commit, none = scheduler.step, scheduler.commit, list[int]()

    def run() -> None:
        step(512)
        commit(none)

    return run


CANDIDATES = ["10000 waiting", "100 waiting", "1000 waiting", "50000 waiting"]


@pytest.mark.parametrize("room", [False, True], ids=["full", "room"])
@pytest.mark.parametrize("candidate", CANDIDATES)
def bench_step_and_commit(benchmark: Any, candidate: str, room: bool) -> None:
    scheduler = loaded_scheduler(int(candidate.split()[0]), room=room)
    line = "first in line does not fit" if room else "all sequences taken"
    benchmark.group = f"step and commit, {RUNNING} running, {line}"
    benchmark.pedantic(step_and_commit(scheduler), rounds=ROUNDS, warmup_rounds=WARMUP_ROUNDS)
    assert scheduler.step(512).num_rows == RUNNING
    scheduler.commit([])
    scheduler.check()


@pytest.mark.parametrize("candidate", CANDIDATES)
def bench_one_leaves_and_one_enters(benchmark: Any, candidate: str) -> None:
    """In every step a request ends, one is admitted with its whole input, and (not timed) one is added."""
    waiting = int(candidate.split()[0])
    scheduler = loaded_scheduler(waiting, room=False)
    ids = itertools.count()

    def add() -> tuple[tuple[list[int]], dict[str, Any]]:
        leaver = next(ids)
        scheduler.add(RUNNING + waiting + leaver, leaver % PROMPTS, leaver % PROMPTS, 140, 1000, 1, NO_HASHES)
        return ([leaver],), {}

    def run(finished: list[int]) -> None:
        scheduler.step(512)
        scheduler.commit(finished)

    benchmark.group = f"step and commit, {RUNNING} running, one leaves and one enters"
    benchmark.pedantic(run, setup=add, rounds=RUNNING - 50, warmup_rounds=50)
    scheduler.check()
