"""Threads of our own: no signal reaches them, and none outlives the program.

A thread that is in native code when the interpreter goes away would abort the process.
"""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress

from ruprompt_fast.errors import DeadlockError, EngineStepError


class _Program:
    """What is known about this process.

    Attributes:
        is_ending: whether no more work is to begin.
        running: for every thread of ours a lock that it frees when it ends.
        own: the numbers of these threads.
        wakers: what wakes those that wait for work.
    """

    def __init__(self) -> None:
        self.is_ending = False
        self.running: set[_thread.LockType] = set()
        self.own: set[int] = set()
        self.wakers: weakref.WeakValueDictionary[int, Callable[[], None]] = weakref.WeakValueDictionary()

    def forget_threads(self) -> None:
        """In a forked process, which they did not come along to."""
        self.running.clear()
        self.own.clear()

    def end(self) -> None:
        """Let every piece of work come to its next end, whatever signals come. Runs on the main thread."""
        self.is_ending = True
        for waker in list(self.wakers.values()):
            waker()
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        while self.running:
            for lock in list(self.running):
                with suppress(BaseException):  # what another signal's handler raises
                    lock.acquire()
                    self.running.discard(lock)
        signal.signal(signal.SIGINT, before if before is not None else signal.SIG_DFL)


_PROGRAM = _Program()
atexit.register(_PROGRAM.end)
os.register_at_fork(after_in_child=_PROGRAM.forget_threads)


def program_is_ending() -> bool:
    """Whether the interpreter is about to end: work stops as soon as it can."""
    return _PROGRAM.is_ending


def check_program() -> None:
    """Refuse new work when the program ends: a daemon thread must not be in native code then.

    Raises:
        EngineStepError: it ends.
    """
    if _PROGRAM.is_ending:
        raise EngineStepError("the program is ending: nothing new can be asked of a model.")


def wake_at_end(waker: Callable[[], None]) -> None:
    """Have ``waker`` called when the program ends; it is not kept alive."""
    _PROGRAM.wakers[id(waker)] = waker


def start_thread(work: Callable[[], None]) -> None:
    """Run ``work`` on a thread of its own.

    Raises:
        EngineStepError: the system gives no thread, or the program ends.
    """
    check_program()
    # `Thread.start` waits for the thread in Python, where an interrupt would leave it without end.
    try:
        _thread.start_new_thread(_run, (work,))
    except RuntimeError as error:
        raise EngineStepError(f"a thread cannot be started: {error}") from error


def _run(work: Callable[[], None]) -> None:
    own, lock = threading.get_ident(), _thread.allocate_lock()
    lock.acquire()
    _PROGRAM.running.add(lock)
    _PROGRAM.own.add(own)
    try:
        if not _PROGRAM.is_ending:
            work()
    finally:
        _PROGRAM.own.discard(own)
        _PROGRAM.running.discard(lock)
        lock.release()


def check_caller(process: int) -> None:
    """Refuse a call that would wait for itself, or for a thread that is not there.

    Args:
        process: the number of the process that loaded the model.

    Raises:
        DeadlockError: the caller is one of our threads, in the midst of a step, or this process is a fork of that one.
    """
    if os.getpid() != process:
        raise DeadlockError(
            f"the model was loaded in process {process}, of which process {os.getpid()} is a fork, without threads. "
            "Load a model there, or start such processes with multiprocessing.get_context('spawn')."
        )
    if threading.get_ident() in _PROGRAM.own:
        raise DeadlockError(
            "the model was called from inside one of its own steps, by a hook of the model or by a finalizer that the "
            "garbage collector ran there. Make the call outside, on a thread of the program's own."
        )
