"""A lock that nobody waits for longer than those who came before need it."""

from __future__ import annotations

import threading
from collections import deque
from types import TracebackType


class FairLock:
    """A lock that is handed on in the order of arrival, or several of them.

    A thread that releases and takes ``threading.Lock`` in a loop, as one that runs steps does, hardly ever lets another
    one in. Not for the main thread: an interrupt in ``__exit__`` would lose it.

    Args:
        slots: how many may hold it at the same time.
    """

    def __init__(self, slots: int = 1) -> None:
        self._guard = threading.Lock()
        self._free = slots
        # A gate for everyone who waits; who leaves opens the first.
        self._gates: deque[threading.Lock] = deque()

    def __enter__(self) -> None:
        gate = threading.Lock()
        gate.acquire()
        with self._guard:
            if self._free:
                self._free -= 1
                return
            self._gates.append(gate)
        gate.acquire()

    def __exit__(
        self,
        kind: type[BaseException] | None = None,
        error: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        with self._guard:
            if self._gates:
                self._gates.popleft().release()
            else:
                self._free += 1

    def give_way(self) -> None:
        """Let those who wait go first; for a holder in the midst of long work."""
        self.__exit__()
        self.__enter__()
