"""Timing a group's candidates in turns, so that a slow minute of the machine falls on all of them.

pytest-benchmark times one test after the other. Here the first test of a group times all of them, round by round, and
every test reports its own seconds: the timer of its benchmark is a clock that moves on by what was measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest


@dataclass
class Timing:
    """What a candidate took.

    Attributes:
        seconds: one value per round.
        base_seconds: likewise, of what is subtracted.
        output: what its first round returned.
        skipped: why it could not run, or None.
    """

    seconds: list[float] = field(default_factory=list)
    base_seconds: list[float] = field(default_factory=list)
    output: Any = None
    skipped: str | None = None


@dataclass
class Candidate:
    """One side of a comparison.

    Attributes:
        run: does the work of a round; gets the round's number, which tells equal work to all candidates.
        base: a part of that work whose fastest time is subtracted from every round; None subtracts nothing.
        rounds: how often it is timed.
        warm_up: whether it runs once before; what takes minutes need not.
    """

    run: Callable[[int], Any]
    base: Callable[[int], Any] | None = None
    rounds: int = 3
    warm_up: bool = True


_now = 0.0


def clock() -> float:
    """The timer of a test that reports; it moves in :func:`report` only."""
    return _now


def report(benchmark: Any, timing: Timing, num_tokens: int | None = None, peak_bytes: int | None = None) -> None:
    """Hand measured seconds to pytest-benchmark; skips the test of a candidate that could not run.

    Args:
        benchmark: the fixture of a test marked ``benchmark(timer=clock)``.
        timing: from :func:`in_turns`.
        num_tokens: how many tokens a round generates or trains on, for the summary.
        peak_bytes: the memory that the candidate took, likewise.
    """
    if timing.skipped is not None:
        pytest.skip(timing.skipped)
    seconds = iter(timing.seconds)
    if num_tokens is not None:
        benchmark.extra_info["tokens"] = num_tokens
    if peak_bytes is not None:
        benchmark.extra_info["peak_bytes"] = peak_bytes

    def advance() -> None:
        global _now
        _now += next(seconds)

    benchmark.pedantic(advance, rounds=len(timing.seconds))


def in_turns(candidates: Mapping[str, Callable[[], Candidate]]) -> dict[str, Timing]:
    """Time candidates side by side: one round of each, then the next round.

    Args:
        candidates: by name; what makes each may skip.
    """
    timings = {name: Timing() for name in candidates}
    ready: dict[str, Candidate] = {}
    for name, make in candidates.items():
        made = _made(make)
        if isinstance(made, Candidate):
            ready[name] = made
        else:
            timings[name].skipped = made
    for candidate in ready.values():
        if candidate.warm_up:
            candidate.run(0)
    for round in range(1, 1 + max((candidate.rounds for candidate in ready.values()), default=0)):
        for name, candidate in ready.items():
            if round <= candidate.rounds:
                _time_round(candidate, round, timings[name])
    for timing in timings.values():
        base = min(timing.base_seconds, default=0.0)
        timing.seconds = [seconds - base for seconds in timing.seconds]
    return timings


def _made(make: Callable[[], Candidate]) -> Candidate | str:
    """The candidate, or why there is none."""
    try:
        return make()
    except pytest.skip.Exception as reason:
        return str(reason)


def _time_round(candidate: Candidate, round: int, timing: Timing) -> None:
    start = time.perf_counter()
    if candidate.base is not None:
        candidate.base(round)
        timing.base_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
    output = candidate.run(round)
    timing.seconds.append(time.perf_counter() - start)
    if round == 1:
        timing.output = output


def names(timings: Sequence[str]) -> pytest.MarkDecorator:
    """The parametrization of a group's tests; the first name is ours."""
    return pytest.mark.parametrize("candidate", timings)
