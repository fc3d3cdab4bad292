"""Seconds of work on the device, candidates in turns, and none of them for longer than its budget."""

from __future__ import annotations

import statistics
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gpu.measurement import NotHere, Setting

FLUSH_BYTES = 256 << 20
"""More than the L2 cache of any card: what a kernel reads is not there from the round before."""


def wait_for(device: str) -> None:
    """Wait until the device has computed all that it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def wall_seconds(run: Callable[[], Any], device: str) -> float:
    """What a call takes until the device has done it."""
    wait_for(device)
    start = time.perf_counter()
    run()
    wait_for(device)
    return time.perf_counter() - start


def kernel_seconds(run: Callable[[], Any], setting: Setting, budget_s: float = 0.4) -> float:
    """The median time of a few kernels on the device, their inputs not in its caches.

    They are replayed as a CUDA graph where they can be captured, as decoding does: launching takes longer than many of
    them.

    Args:
        run: launches them.
        setting: on a CPU the time is the wall's.
        budget_s: seconds for all rounds.
    """
    run()
    deadline = time.perf_counter() + budget_s
    if not setting.on_card:
        return statistics.median(wall_seconds(run, "cpu") for _ in range(3))
    run = _replayed(run)
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    seconds: list[float] = []
    while time.perf_counter() < deadline or len(seconds) < 3:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        flush.zero_()
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1e3)
    return statistics.median(seconds)


def _replayed(run: Callable[[], Any]) -> Callable[[], Any]:
    """The replay of what the call launches; the call itself where it cannot be captured."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            run()
    except RuntimeError:  # something waits for the device
        torch.cuda.synchronize()
        return run
    return graph.replay


@dataclass
class Candidate:
    """One side of a comparison.

    Attributes:
        run: does the work of a round; gets the round's number.
        base: a part of that work whose time is subtracted; None subtracts nothing.
        rounds: how often it is timed at most, after one round that is not.
        budget_s: seconds after which no further round begins.
        warm_up: whether there is that first round.
    """

    run: Callable[[int], Any]
    base: Callable[[int], Any] | None = None
    rounds: int = 3
    budget_s: float = 10.0
    warm_up: bool = True


@dataclass
class Timing:
    """What a candidate took.

    Attributes:
        seconds: one value per round, less the fastest ``base``.
        output: what its last round returned.
        error: why it could not go on, or empty.
    """

    seconds: list[float] = field(default_factory=list)
    output: Any = None
    error: str = ""

    @property
    def median(self) -> float:
        """The median round; NaN without one."""
        return statistics.median(self.seconds) if self.seconds else float("nan")


class _Side:
    """A candidate with what it took; one that fails once is not asked again."""

    def __init__(self, make: Callable[[], Candidate], device: str) -> None:
        self._timing = Timing()
        self.candidate: Candidate | None = None
        self._device = device
        self._bases: list[float] = []
        self._used_s = 0.0
        self._attempt(lambda: self._prepare(make))

    def _prepare(self, make: Callable[[], Candidate]) -> None:
        candidate = make()
        if candidate.warm_up:
            candidate.run(0)
        self.candidate = candidate

    def time_round(self, round: int) -> None:
        """Time a round, unless the candidate has failed, or is to take no more time."""
        candidate = self.candidate
        if candidate is None or round > candidate.rounds or (round > 1 and self._used_s >= candidate.budget_s):
            return
        start = time.perf_counter()
        self._attempt(lambda: self._time(candidate, round))
        self._used_s += time.perf_counter() - start

    def _time(self, candidate: Candidate, round: int) -> None:
        base = candidate.base
        if base is not None:
            self._bases.append(wall_seconds(lambda: base(round), self._device))

        def run() -> None:
            self._timing.output = candidate.run(round)

        self._timing.seconds.append(wall_seconds(run, self._device))

    def _attempt(self, action: Callable[[], None]) -> None:
        try:
            action()
        except NotHere as reason:
            self._give_up(str(reason))
        except Exception:
            # This program reports: a peer that cannot do this here is named, and the comparison goes on without it.
            self._give_up(traceback.format_exc())

    def _give_up(self, error: str) -> None:
        self._timing.error, self.candidate = error, None

    def result(self) -> Timing:
        """What it took so far, less the fastest base."""
        base = min(self._bases, default=0.0)
        return replace(self._timing, seconds=[seconds - base for seconds in self._timing.seconds])


def in_turns(
    makers: Mapping[str, Callable[[], Candidate]],
    device: str,
    after_round: Callable[[dict[str, Timing]], None] = lambda timings: None,
) -> dict[str, Timing]:
    """Time candidates side by side, one round of each and then the next; one that fails leaves the others alone.

    Args:
        makers: what makes each candidate, by name.
        device: where they compute.
        after_round: is given what they took so far, as there may be no time for another round.
    """
    sides = {name: _Side(make, device) for name, make in makers.items()}
    rounds = max((side.candidate.rounds for side in sides.values() if side.candidate is not None), default=0)
    for round in range(1, 1 + rounds):
        for side in sides.values():
            side.time_round(round)
        after_round({name: side.result() for name, side in sides.items()})
    return {name: side.result() for name, side in sides.items()}
