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

import torch

_WINDOW_SECONDS = 0.2  # of work, between two looks at what the system counts
_LEAST_WORK = 0.1  # of a window's time: what other threads of this process wait for in long rests says nothing of ours
_MOST_WAITING = 0.25
_LEAST_IDLE = 0.7
_SHORTEST_HOLD, _LONGEST_HOLD = 0.5, 16.0
_TRY_AGAIN_SECONDS = 30.0

_THREADS = "/proc/self/task"


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
    _grown_at: float = float("-inf")
    _hold_seconds: float = _SHORTEST_HOLD
    _is_doubted: bool = False

    def decide(self, waiting: float, idle: float, at: float) -> bool:
        """Decide again; returns whether the number has changed.

        It shrinks by the threads that had no processor, if that is so twice in a row, or at once where it has just
        grown: a moment's work of another program is no reason. It grows onto idle processors, later each time that
        growing has turned out to be wrong; and, in case the system does not count them rightly, after half a minute in
        any case.

        Args:
            waiting: how many threads of this process waited for a processor, on the average.
            idle: how many processors were free for more threads.
            at: the time in seconds.
        """
        before, unchanged_seconds = self.now, at - self._changed_at
        is_crowded = self.now > 1 and waiting > _MOST_WAITING
        if is_crowded and self._is_doubted:
            was_wrong = at - self._grown_at < 2 * self._hold_seconds
            self._hold_seconds = min(2 * self._hold_seconds, _LONGEST_HOLD) if was_wrong else _SHORTEST_HOLD
            self.now = max(1, self.now - max(1, round(waiting)))
        elif self.now < self.most and (
            (idle > _LEAST_IDLE and unchanged_seconds > self._hold_seconds) or unchanged_seconds > _TRY_AGAIN_SECONDS
        ):
            self.now = min(self.most, self.now + max(1, round(idle)))
            self._grown_at = at
        if self.now == before:
            self._is_doubted = is_crowded
            return False
        self._is_doubted = self.now > before
        self._changed_at = at
        return True


class Team:
    """The threads that the calling thread computes on, counted again between two pieces of work.

    All methods are for the thread that computes.

    Args:
        fixed: the number, if it is not to change.
    """

    def __init__(self, fixed: int | None = None) -> None:
        self._fixed = fixed
        self.forget()

    def forget(self) -> None:
        """Another thread takes over, which begins with torch's own number."""
        self._size = TeamSize(0, 0)
        self._window: _Sample | None = None
        self._working_since: float | None = None
        self._worked_seconds = 0.0

    def allow(self, most: int) -> None:
        """Compute on ``most`` threads, or fewer while other programs take the processors."""
        most = most if self._fixed is None else self._fixed
        if most != self._size.most:
            self.forget()
            self._size = TeamSize(most, most)
            use_threads(most)

    def rest(self) -> None:
        """There is nothing to compute for a while."""
        if self._working_since is not None:
            self._worked_seconds += time.monotonic() - self._working_since
            self._working_since = None

    def adjust(self) -> None:
        """Between two pieces of work: look at how the last ones went, and change the number for the next."""
        if self._fixed is not None or self._size.most < 2 or _openmp() is None:
            return
        self.rest()
        now = self._working_since = time.monotonic()
        if self._window is None or self._worked_seconds < _LEAST_WORK * (now - self._window.at):
            self._begin_window(_Sample(now, self._is_short))
        elif self._worked_seconds >= _WINDOW_SECONDS:
            self._end_window(self._window, _Sample(now, self._is_short))

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
            self.rest()
            use_threads(own)

    @property
    def _is_short(self) -> bool:
        return self._size.now < self._size.most

    def _begin_window(self, begin: _Sample) -> None:
        self._window, self._worked_seconds = begin, 0.0

    def _end_window(self, begin: _Sample, end: _Sample) -> None:
        seconds = end.at - begin.at
        waiting = end.waited_since(begin) / self._worked_seconds
        resting = self._size.now * (1 - self._worked_seconds / seconds)  # of our own, which are idle, too
        if self._size.decide(waiting, end.idle_since(begin) / seconds - resting, end.at):
            use_threads(self._size.now)
            end = _Sample(end.at, self._is_short)
        self._begin_window(end)


def use_threads(count: int) -> None:
    """What ``torch.set_num_threads`` does, for the calling thread only, as far as OpenMP can be asked."""
    torch.get_num_threads()  # a thread takes torch's number at its first question: not after ours
    (_openmp() or torch.set_num_threads)(count)


class _Sample:
    """What the system has counted until now.

    Args:
        at: the time now.
        counts_idle: whether to look at the processors; 0 of them are idle otherwise.
    """

    __slots__ = ("_idle_ticks", "_used_seconds", "_waited", "at")

    def __init__(self, at: float, counts_idle: bool) -> None:
        self.at = at
        self._waited = _waited_nanoseconds()
        self._idle_ticks = _idle_ticks() if counts_idle else 0
        self._used_seconds = time.process_time()

    def waited_since(self, before: _Sample) -> float:
        """For how many seconds threads of this process had no processor, added up; 0 where the system does not say."""
        waited = (count - before._waited[thread] for thread, count in self._waited.items() if thread in before._waited)
        return sum(waited) / 1e9

    def idle_since(self, before: _Sample) -> float:
        """For how many seconds our processors were idle, added up; 0 where the system does not say.

        The system counts the machine's processors, of which a container may have less time than they are idle.
        """
        idle = (self._idle_ticks - before._idle_ticks) / os.sysconf("SC_CLK_TCK")
        left = _container_processors() * (self.at - before.at) - (self._used_seconds - before._used_seconds)
        return min(idle, left)


def _waited_nanoseconds() -> dict[str, int]:
    """How long each thread of this process was ready to run and had no processor."""
    waited: dict[str, int] = {}
    with suppress(OSError):  # a system that does not count
        for thread in os.listdir(_THREADS):
            with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
                waited[thread] = int(_read(f"{_THREADS}/{thread}/schedstat").split()[1])
    return waited


def _idle_ticks() -> int:
    """How long the processors that we may use were idle, all together."""
    try:
        usable = {b"cpu%d" % processor for processor in os.sched_getaffinity(0)}
        lines = (line.split() for line in _read("/proc/stat").splitlines() if line.startswith(b"cpu"))
        return sum(int(line[4]) + int(line[5]) for line in lines if line[0] in usable)
    except (OSError, ValueError, IndexError, AttributeError):  # another system
        return 0


def _container_processors() -> float:
    """How many processors' time this container may use; infinitely many if there is no limit."""
    try:
        quota, period = _read("/sys/fs/cgroup/cpu.max").split()
        return int(quota) / int(period)
    except (OSError, ValueError):  # "max", or no such system
        return float("inf")


def _read(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()


@cache
def _openmp() -> Callable[[int], None] | None:
    """Sets the number of threads of the calling thread, in the libraries that torch is linked with.

    ``torch.set_num_threads`` sets the number for every thread that is started later, too. It gives MKL the number as
    well, which from then on does not ask OpenMP for it.
    """
    try:
        torch_library = ctypes.CDLL(torch._C.__file__)
        setters = [torch_library.omp_set_num_threads]
    except (OSError, AttributeError):  # a torch without OpenMP, or a system that does not look it up
        return None
    with suppress(AttributeError):  # a torch without MKL
        setters.append(torch_library.MKL_Set_Num_Threads_Local)
    for setter in setters:
        setter.argtypes, setter.restype = [ctypes.c_int], None

    def set_threads(count: int) -> None:
        for setter in setters:
            setter(count)

    return set_threads
