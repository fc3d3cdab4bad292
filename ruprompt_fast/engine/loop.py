"""Many threads, one engine: a thread of the engine's own runs the steps that any of them waits for.

Python runs signal handlers in the main thread only, between any two of its instructions, so a ``KeyboardInterrupt`` may
split whatever that thread does, also the ``__exit__`` of a lock. What changes the engine therefore runs on a thread
that no signal reaches. Callers put work into a queue, which is written in C, and wait for the answer; an interrupt can
make them go away, but leaves nothing half done. One thread also means one team of OpenMP and one arena of the
allocator, however many threads call.

Steps run for as long as a caller waits. With an :class:`~ruprompt_fast.engine.orders.Audience`, which never has to ask
for the next one, they run for as long as there is work.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, TypeAlias, TypeVar, cast

from ruprompt_fast.concurrency.fair_lock import FairLock
from ruprompt_fast.concurrency.team import Team
from ruprompt_fast.concurrency.threads import check_caller, program_is_ending, start_thread, wake_at_end
from ruprompt_fast.engine.orders import Answer, Audience, Order
from ruprompt_fast.errors import EngineStepError, described

T = TypeVar("T")
_AnyOrder: TypeAlias = Order[Any]

LOOK_AGAIN_SECONDS = 5.0
"""How long a caller waits before it makes sure that the thread is still there."""

_PAUSE_SECONDS = 0.001  # between steps that have nothing to do


class StepLoop:
    """Runs steps for as long as a caller waits for something that they bring about, or an audience watches them.

    The thread is started by the first call, ends with the last reference to this object, and cannot be lost: a caller
    whose thread has died starts another.

    Args:
        step: a method that runs one step and returns whether there was something to do; called on the thread, holding
            the engine lock. The object that it belongs to is not kept alive.
        engine_lock: held for everything that a step changes.
        threads: how many threads a step computes on; None takes the latest caller's, or fewer while other programs take
            processors.

    Attributes:
        is_stale: whether another thread is to take the place of this one, after the step that it runs.
        audience: for whom steps run as long as there is work; set on the thread.
    """

    def __init__(self, step: Callable[[], bool], engine_lock: FairLock, threads: int | None = None) -> None:
        self._step = weakref.WeakMethod(step)
        self._engine_lock = engine_lock
        self._orders: SimpleQueue[_AnyOrder | None] = SimpleQueue()
        # Held by the thread that runs. Two callers may both find it free and start threads; the second ends at once.
        self._running = threading.Lock()
        self._process = os.getpid()
        self._waiting: list[weakref.ref[_AnyOrder]] = []
        self._team = Team(threads)
        self.is_stale = False
        self.audience: Audience | None = None
        self._wake = partial(self._orders.put, None)
        weakref.finalize(self, self._wake).atexit = False
        wake_at_end(self._wake)

    def call(self, work: Callable[[], T]) -> T:
        """What ``work`` returns or raises, run on the thread between two steps.

        An interrupt while the caller waits does not stop it.

        Raises:
            DeadlockError: the caller is on this thread or another of ours, or in a fork of the process that made it.
        """
        return cast(T, self._answered(work, None))

    def run_until(self, done: Callable[[], bool]) -> None:
        """Return as soon as ``done()``, which a step makes true; it is called on the thread, after every step.

        Raises:
            DeadlockError: as for :meth:`call`.
        """
        self._answered(None, done)

    def post(self, order: _AnyOrder) -> None:
        """Have an order carried out between two steps, without waiting for the answer.

        Raises:
            DeadlockError: as for :meth:`call`.
            EngineStepError: the thread is gone, and the system gives no other, or the program ends.
        """
        self.check_caller()
        self._orders.put(order)
        self.make_sure()

    def make_sure(self) -> None:
        """Start a thread if there is none.

        Raises:
            EngineStepError: the system does not give one, or the program ends.
        """
        if not self._running.locked():
            self.start()

    def check_caller(self) -> None:
        """Refuse a caller whom the thread cannot answer.

        Raises:
            DeadlockError: as for :meth:`call`.
        """
        check_caller(self._process)

    def _answered(self, work: Callable[[], T] | None, done: Callable[[], bool] | None) -> T | None:
        self.check_caller()
        answers: SimpleQueue[Answer[T]] = SimpleQueue()
        order = Order(answers.put, work, done)
        try:
            self._orders.put(order)
            while True:
                self.make_sure()
                try:
                    value, error = answers.get(timeout=LOOK_AGAIN_SECONDS)
                    break
                except Empty:
                    continue
        finally:
            order.is_wanted = False
        if error is not None:
            try:
                raise error
            finally:
                # The error's traceback holds this frame: a cycle that would outlive the caller.
                del error, order, answers
        return value

    def start(self) -> None:
        """Start a thread.

        Raises:
            EngineStepError: the system does not give one, or the program ends.
        """
        start_thread(partial(_run, weakref.ref(self), self._orders, self._running))

    def take_over(self) -> None:
        """Begin on another thread. For the thread only."""
        self._team.forget()

    def advance(self, order: _AnyOrder | None) -> bool:
        """Carry out orders and run a step, if somebody waits for it; whether another is to follow. For the thread only.

        Args:
            order: the first of the orders; None if there is none.
        """
        with self._engine_lock:
            while order is not None:
                try:
                    self._take(order)
                except BaseException as error:  # for want of memory: the order has left the queue
                    order.fail(step_error(error))
                order = _next(self._orders, wait=False)
            waits, had_work = self._settle(), False
            if waits or self.audience is not None:
                self._team.adjust()
                step = self._step()
                try:
                    had_work = step is not None and step()
                except BaseException as error:  # nobody must wait for what will not come
                    self._fail(error)
                waits = self._settle()
            goes_on = waits or (had_work and self.audience is not None)
            if not goes_on:
                self._team.rest()
        if waits and not had_work:  # what is waited for is on its way from another caller
            time.sleep(_PAUSE_SECONDS)
        return goes_on

    def _take(self, order: _AnyOrder) -> None:
        self._team.allow(order.num_threads)  # OpenMP keeps the number for each thread apart
        order.run()
        if order.done is not None:
            self._waiting.append(weakref.ref(order))

    def _settle(self) -> bool:
        """Answer those who have what they want; whether others wait."""
        if self._waiting:
            orders = [reference() for reference in self._waiting]
            self._waiting = [weakref.ref(order) for order in orders if order is not None and not order.settle()]
        if self.audience is not None:
            self.audience.tell()
        return bool(self._waiting)

    def _fail(self, error: BaseException) -> None:
        orders = [reference() for reference in self._waiting]
        self._waiting = []
        for order in orders:
            if order is not None:
                order.fail(step_error(error))
        if self.audience is not None:
            self.audience.fail(partial(step_error, error))


def step_error(cause: BaseException) -> EngineStepError:
    """What those who lose a request in a failed step are told, each an error of its own."""
    error = EngineStepError(f"a step of the engine failed: {described(cause)}")
    error.__cause__ = cause
    return error


def _next(orders: SimpleQueue[_AnyOrder | None], *, wait: bool) -> _AnyOrder | None:
    try:
        return orders.get(block=wait)
    except Empty:
        return None


def _run(owner: weakref.ref[StepLoop], orders: SimpleQueue[_AnyOrder | None], running: threading.Lock) -> None:
    """The thread: it keeps the loop alive only while there are steps to run."""
    if not running.acquire(blocking=False):
        return
    loop: StepLoop | None = None
    try:
        if (loop := owner()) is not None:
            loop.take_over()
        waits = True  # those whom the thread before this one has left
        while True:
            order = _next(orders, wait=not waits)
            loop = owner()
            if loop is None or (order is None and not waits):
                return
            waits = loop.advance(order)
            if loop.is_stale or program_is_ending():
                return
            del order
            loop = None
    finally:
        starts_another = loop is not None and loop.is_stale
        if loop is not None:
            loop.is_stale = False  # before another thread may run a step, and set it
        running.release()
        if loop is not None and starts_another:
            with suppress(EngineStepError):  # for want of memory: the callers try again
                loop.start()
