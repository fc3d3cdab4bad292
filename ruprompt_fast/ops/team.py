"""How many threads compute, on a machine where other programs may take processors.

OpenMP cuts every matrix into as many parts as it has threads, and all of them wait, spinning, for the one whose
processor is taken: beside one busy program a step on two processors takes many times as long as alone, but little
longer on one thread. So a team whose threads had to wait for a processor gets smaller, and grows again when processors
are idle.

What is computed does not depend on it: our kernels give the same bits with any number of threads, and oneDNN cuts its
matrices between their outputs.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from glob import glob
from pathlib import Path

import torch

_WINDOW_SECONDS = 0.1
_BEFORE_SECONDS = 0.03  # of work before the first window: short requests are not measured
_MOST_WAITING = 0.25
_LEAST_IDLE = 0.7
_SHORTEST_HOLD, _LONGEST_HOLD = 0.5, 16.0
_TRY_AGAIN_SECONDS = 30.0


@dataclass
class TeamSize:
    """How many of ``most`` threads are to compute, decided from what the system counts.

    Attributes:
        most: the number where nothing else runs.
        now: the number now.
    """

    most: int
    now: int
    _changed_at: float = 0.0
    _hold_seconds: float = _SHORTEST_HOLD

    def decide(self, waiting: float, idle: float, at: float) -> bool:
        """Decide anew; returns whether the number has changed.

        It shrinks by the threads that had no processor. It grows onto idle processors, later each time that growing has
        turned out to be wrong; and, in case the system does not count them rightly, after half a minute in any case.

        Args:
            waiting: how many threads of this process waited for a processor, on the average.
            idle: how many processors were idle.
            at: the time in seconds.
        """
        before, unchanged_seconds = self.now, at - self._changed_at
        if self.now > 1 and waiting > _MOST_WAITING:
            was_wrong = unchanged_seconds < 2 * self._hold_seconds
            self._hold_seconds = min(2 * self._hold_seconds, _LONGEST_HOLD) if was_wrong else _SHORTEST_HOLD
            self.now = max(1, self.now - max(1, round(waiting)))
        elif self.now < self.most and (
            (idle > _LEAST_IDLE and unchanged_seconds > self._hold_seconds) or unchanged_seconds > _TRY_AGAIN_SECONDS
        ):
            self.now = min(self.most, self.now + max(1, round(idle)))
        if self.now != before:
            self._changed_at = at
        return self.now != before


class Team:
    """The threads that the calling thread computes on, counted anew between two pieces of work.

    All methods are for the thread that computes.

    Args:
        fixed: the number, if it is not to change.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self._size = TeamSize(0, 0)
        self._began: float | None = None
        self._window: _Sample | None = None

    def allow(self, most: int) -> None:
        """Compute on ``most`` threads, or fewer while other programs take the processors."""
        most = most if self._fixed is None else self._fixed
        if most != self._size.most:
            self._size = TeamSize(most, most)
            use_threads(most)
            self.rest()

    def forget(self) -> None:
        """Another thread takes over, which begins with torch's own number."""
        self._size = TeamSize(0, 0)

    def rest(self) -> None:
        """There is nothing to compute for a while."""
        self._began = self._window = None

    def adjust(self) -> None:
        """Between two pieces of work: look at how the last ones went, and change the number for the next."""
        if self._fixed is not None or self._size.most < 2 or _openmp() is None:
            return
        now = time.monotonic()
        if self._began is None:
            self._began = now
        elif self._window is None:
            if now - self._began >= _BEFORE_SECONDS:
                self._window = _Sample(now)
        elif now - self._window.at >= _WINDOW_SECONDS:
            before, self._window = self._window, _Sample(now)
            if self._size.decide(self._window.waiting_since(before), self._window.idle_since(before), now):
                use_threads(self._size.now)

    @contextmanager
    def working(self) -> Iterator[None]:
        """One piece of work, on as many threads as are right for it; between them the caller keeps its own number."""
        own = torch.get_num_threads()
        self.allow(own)
        self.adjust()
        use_threads(self._size.now)
        try:
            yield
        finally:
            use_threads(own)


def use_threads(count: int) -> None:
    """Compute on so many threads where this one calls; others keep their number, as far as OpenMP can be asked."""
    torch.get_num_threads()  # a thread takes torch's number at its first question: not behind ours
    (_openmp() or torch.set_num_threads)(count)


class _Sample:
    """What the system has counted until now.

    Args:
        at: the time now.
    """

    __slots__ = ("_idle_ticks", "_waited", "at")

    def __init__(self, at: float) -> None:
        self.at = at
        self._waited = _waited_nanoseconds()
        self._idle_ticks = _idle_ticks()

    def waiting_since(self, before: _Sample) -> float:
        """How many threads of this process had no processor, on the average; 0 where the system does not say."""
        waited = (count - before._waited[thread] for thread, count in self._waited.items() if thread in before._waited)
        return sum(waited) / 1e9 / (self.at - before.at)

    def idle_since(self, before: _Sample) -> float:
        """How many of our processors were idle, on the average; 0 where the system does not say."""
        return (self._idle_ticks - before._idle_ticks) / os.sysconf("SC_CLK_TCK") / (self.at - before.at)


def _waited_nanoseconds() -> dict[str, int]:
    """How long each thread of this process was ready to run and had no processor."""
    waited = {}
    for path in glob("/proc/self/task/*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended, or a system that does not count
            waited[path] = int(Path(path).read_bytes().split()[1])
    return waited


def _idle_ticks() -> int:
    """How long the processors that we may use were idle, all together."""
    try:
        usable = {b"cpu%d" % processor for processor in os.sched_getaffinity(0)}
        lines = (line.split() for line in Path("/proc/stat").read_bytes().splitlines())
        return sum(int(line[4]) + int(line[5]) for line in lines if line and line[0] in usable)
    except (OSError, ValueError, IndexError, AttributeError):  # another system
        return 0


@cache
def _openmp() -> Callable[[int], None] | None:
    """Sets the number of OpenMP threads of the calling thread, in the runtime that torch is linked with.

    ``torch.set_num_threads`` sets the number for every thread that is started later, too.
    """
    try:
        set_threads = ctypes.CDLL(torch._C.__file__).omp_set_num_threads
    except (OSError, AttributeError):  # a torch without OpenMP, or a system that does not look it up
        return None
    set_threads.argtypes, set_threads.restype = [ctypes.c_int], None
    return set_threads
