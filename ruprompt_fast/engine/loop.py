"""Many threads, one engine: whoever waits first runs the steps for all."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from types import TracebackType


class FairLock:
    """A lock that is handed on in the order of arrival.

    A thread that releases and takes ``threading.Lock`` in a loop, as one that runs steps does, hardly ever lets another
    one in.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        # One gate for everyone who wants the lock, the holder's first. A gate opens when its owner's turn comes.
        self._gates: deque[threading.Lock] = deque()
        self._opened: threading.Lock | None = None
        self._holder: int | None = None

    @property
    def held_here(self) -> bool:
        """Whether the calling thread holds the lock; a finalizer that it runs must not wait for others then."""
        return self._holder == threading.get_ident()

    def __enter__(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        try:
            with self._guard:
                self._gates.append(gate)
                self._open_first()
            gate.acquire()
            self._holder = threading.get_ident()
        except BaseException:  # an interrupt, at any point: leave the line, or give the turn on
            self._leave(gate)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gate = self._gates[0]
        try:
            self._leave(gate)
        except BaseException:  # an interrupt on the way
            self._leave(gate)
            raise

    def _leave(self, gate: threading.Lock) -> None:
        """Leave the line and let the first in it begin; may be called again."""
        with self._guard:
            if gate is self._opened:
                self._holder = None
            if gate in self._gates:
                self._gates.remove(gate)
            self._open_first()

    def _open_first(self) -> None:
        if self._gates and self._gates[0] is not self._opened:
            self._opened = self._gates[0]
            self._opened.release()


class StepLoop:
    """Runs steps until what the calling thread waits for has happened.

    One of the waiting threads leads and runs the steps, the others sleep; when the leader has what it wants, another
    one takes over. So there is no thread of our own to start, to end or to lose, and what different threads ask for
    shares steps.

    Args:
        step: runs one step; called with ``turn`` held.
        turn: the lock over everything that a step changes.
    """

    def __init__(self, step: Callable[[], None], turn: FairLock) -> None:
        self._step = step
        self._turn = turn
        self._changed = threading.Condition()
        self._led = False

    def run_until(self, done: Callable[[], bool]) -> None:
        """Return as soon as ``done()``, which a step makes true."""
        leads = False
        try:
            with self._changed:
                self._changed.wait_for(lambda: done() or not self._led)
                if not done():
                    leads = self._led = (
                        True  # in this order: an interrupt between the two must not leave a lead without leader
                    )
            if leads:
                self._lead(done)
        finally:
            if leads:
                try:
                    self._hand_over()
                except BaseException:  # an interrupt on the way
                    self._hand_over()
                    raise

    def _hand_over(self) -> None:
        with self._changed:
            self._led = False
            self._changed.notify_all()

    def _lead(self, done: Callable[[], bool]) -> None:
        while not done():
            with self._turn:
                if not done():
                    self._step()
            with self._changed:
                self._changed.notify_all()
