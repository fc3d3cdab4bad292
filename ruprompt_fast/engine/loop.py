"""Many threads, one engine: a thread of the engine's own runs the steps that any of them waits for.

Python runs signal handlers in the main thread only, between any two of its instructions, so a ``KeyboardInterrupt`` may
split whatever that thread does, also the ``__exit__`` of a lock. What changes the engine therefore runs on a thread
that no signal reaches. Callers put work into a queue, which is written in C, and wait for the answer; an interrupt can
make them go away, but leaves nothing half done. One thread also means one team of OpenMP and one arena of the
allocator, however many threads call.
"""

from __future__ import annotations

import _thread
import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeAlias, TypeVar, cast

import torch

from ruprompt_fast.engine.fair_lock import FairLock
from ruprompt_fast.errors import EngineStepError, ForkedProcessError

T = TypeVar("T")

_LOOK_AGAIN_SECONDS = 5.0  # how long a caller waits before it makes sure that the thread is still there
_PAUSE_SECONDS = 0.001  # between steps that have nothing to do


class _Order(Generic[T]):
    """What a caller wants of the thread, and the way back to it.

    Attributes:
        done: for work, None; else whether what the caller waits for has happened.
        answer: gets what the work returned, or what it or ``done`` raised.
        is_wanted: whether the caller still waits.
    """

    __slots__ = ("__weakref__", "answer", "done", "is_wanted", "num_threads", "work")

    def __init__(self, work: Callable[[], T] | None, done: Callable[[], bool] | None) -> None:
        self.work = work
        self.done = done
        self.answer: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()
        self.is_wanted = True
        self.num_threads = torch.get_num_threads()

    def run(self) -> None:
        """Do the work."""
        work, self.work = self.work, None
        if work is None or not self.is_wanted:
            return
        try:
            self.answer.put((work(), None))
        except BaseException as error:
            self.answer.put((None, error))

    def settle(self) -> bool:
        """Answer if what is waited for has happened; whether the caller need not be waited for any more."""
        if not self.is_wanted or self.done is None:
            return True
        try:
            if not self.done():
                return False
            self.answer.put((None, None))
        except BaseException as error:
            self.answer.put((None, error))
        return True


_AnyOrder: TypeAlias = _Order[Any]


class StepLoop:
    """Runs steps for as long as a caller waits for something that they bring about.

    The thread is started by the first call, ends with the last reference to this object, and cannot be lost: a caller
    whose thread has died starts another.

    Args:
        step: runs one step, and returns whether there was something to do; called on the thread, with ``turn`` held.
        turn: the lock over everything that a step changes.

    Attributes:
        is_ending: whether the thread is to end behind the step that it runs.
        is_stale: whether another thread is to take its place then.
    """

    def __init__(self, step: Callable[[], bool], turn: FairLock) -> None:
        self._step = step
        self._turn = turn
        self._orders: SimpleQueue[_AnyOrder | None] = SimpleQueue()
        # Held by the thread that runs. Two callers may both find it free and start threads; the second ends at once.
        self._running = threading.Lock()
        self._process = os.getpid()
        self._waiting: list[weakref.ref[_AnyOrder]] = []
        self._num_threads = 0
        self.is_ending = False
        self.is_stale = False
        weakref.finalize(self, self._orders.put, None).atexit = False
        _LOOPS.add(self)

    def call(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises, run on the thread between two steps.

        An interrupt while the caller waits does not stop it.

        Raises:
            ForkedProcessError: this process is a fork of the one that made the model.
        """
        return cast(T, self._answer(_Order(work, None)))

    def run_until(self, done: Callable[[], bool]) -> None:
        """Return as soon as ``done()``, which a step makes true; it is called on the thread, after every step.

        Raises:
            ForkedProcessError: as for :meth:`call`.
        """
        self._answer(_Order(None, done))

    def check_process(self) -> None:
        """Refuse a process that was forked: the thread, and those of OpenMP, did not come along.

        Raises:
            ForkedProcessError: this process is a fork of the one that made the model.
        """
        if os.getpid() != self._process:
            raise ForkedProcessError(
                f"the model was loaded in process {self._process}, and process {os.getpid()} is a fork of it, without "
                "its threads. Load a model there, or start such processes with multiprocessing.get_context('spawn')."
            )

    def end(self) -> None:
        """Let the step that runs come to its end, and the thread with it; the next call starts another."""
        if os.getpid() == self._process and self._running.locked():
            self.is_ending = True
            self._orders.put(None)
            with self._running:
                self.is_ending = False

    def _answer(self, order: _Order[T]) -> T | None:
        self.check_process()
        try:
            self._orders.put(order)
            while True:
                if not self._running.locked():
                    self.start()
                try:
                    value, error = order.answer.get(timeout=_LOOK_AGAIN_SECONDS)
                    break
                except Empty:
                    continue
        finally:
            order.is_wanted = False
        if error is not None:
            try:
                raise error
            finally:
                del error, order  # the error's traceback holds this frame: a cycle that would outlive the caller
        return value

    def start(self) -> None:
        """Start a thread.

        Raises:
            EngineStepError: the system does not give one.
        """
        # `Thread.start` waits for the thread in Python, where an interrupt would leave it without end.
        try:
            _thread.start_new_thread(_run, (weakref.ref(self), self._orders, self._running))
        except RuntimeError as error:
            raise EngineStepError(f"the engine's thread cannot be started: {error}") from error

    def advance(self, order: _AnyOrder | None) -> bool:
        """Carry out orders and, if somebody waits, run a step; whether somebody still waits. For the thread only.

        Args:
            order: the first of them; None if there is none.
        """
        with self._turn:
            while order is not None:
                self._take(order)
                order = _next(self._orders, wait=False)
            if not self._settle():
                return False
            try:
                had_work = self._step()
            except BaseException as error:  # nobody must wait for what will not come
                self._fail(error)
                return False
            waits = self._settle()
        if waits and not had_work:  # what is waited for is on its way from another caller
            time.sleep(_PAUSE_SECONDS)
        return waits

    def _take(self, order: _AnyOrder) -> None:
        if order.num_threads != self._num_threads:
            # OpenMP keeps the number for each thread apart; the steps take the latest caller's.
            self._num_threads = order.num_threads
            torch.set_num_threads(order.num_threads)
        order.run()
        if order.done is not None:
            self._waiting.append(weakref.ref(order))

    def _settle(self) -> bool:
        """Answer those who have what they want; whether others wait."""
        if self._waiting:
            orders = [reference() for reference in self._waiting]
            self._waiting = [weakref.ref(order) for order in orders if order is not None and not order.settle()]
        return bool(self._waiting)

    def _fail(self, error: BaseException) -> None:
        orders = [reference() for reference in self._waiting]
        self._waiting = []
        for order in orders:
            if order is not None:
                order.answer.put((None, step_error(error)))


def step_error(cause: BaseException) -> EngineStepError:
    """What those who lose a request in a failed step are told, each an error of its own."""
    error = EngineStepError(f"a step of the engine failed: {type(cause).__name__}: {cause}")
    error.__cause__ = cause
    return error


def _next(orders: SimpleQueue[_AnyOrder | None], *, wait: bool) -> _AnyOrder | None:
    try:
        return orders.get(block=wait)
    except Empty:
        return None


def _run(owner: weakref.ref[StepLoop], orders: SimpleQueue[_AnyOrder | None], running: threading.Lock) -> None:
    """The thread: it keeps the loop alive only while somebody waits."""
    if not running.acquire(blocking=False):
        return
    loop: StepLoop | None = None
    try:
        waits = True  # those whom the thread before this one has left
        while True:
            order = _next(orders, wait=not waits)
            loop = owner()
            if loop is None or (order is None and not waits):
                return
            waits = loop.advance(order)
            if loop.is_ending or loop.is_stale:
                return
            del order
            loop = None
    finally:
        running.release()
        if loop is not None and loop.is_stale:
            loop.is_stale = False
            with suppress(EngineStepError):  # for want of memory: the callers try again
                loop.start()


_LOOPS: weakref.WeakSet[StepLoop] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """Let the steps that still run come to their end: a thread in native code must not outlive the interpreter."""
    for loop in list(_LOOPS):
        loop.end()
