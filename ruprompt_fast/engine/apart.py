"""Work on a thread of its own, whose results are read as they come."""

from __future__ import annotations

import _thread
import atexit
import threading
import weakref
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from ruprompt_fast.errors import EngineStepError

T = TypeVar("T")


class Apart(Generic[T]):
    """A piece of work that no signal reaches; whoever waits for it may be interrupted.

    Args:
        work: is handed this object; calls :meth:`send`, and stops early where :attr:`is_closed` says so.

    Attributes:
        is_closed: whether nobody reads the results any more.
    """

    def __init__(self, work: Callable[[Apart[T]], None]) -> None:
        self._work = work
        self._results: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
        self._has_started = False
        self._ended = threading.Lock()  # free once the thread has done its work
        self._ended.acquire()
        self.is_closed = False

    def send(self, result: T) -> None:
        """Hand one result to the reader."""
        self._results.put((result,))

    def results(self) -> Iterator[T]:
        """The results in order, then what ``work`` raised, if it did. Closing the iterator closes the work.

        Raises:
            EngineStepError: the system gives no thread.
        """
        try:
            _STARTED.add(self)
            try:
                _thread.start_new_thread(self._run, ())
            except RuntimeError as error:
                raise EngineStepError(f"a thread cannot be started: {error}") from error
            while (result := self._results.get()) is not None:
                if isinstance(result, BaseException):
                    raise result
                yield result[0]
        finally:
            self.is_closed = True

    def end(self) -> None:
        """Close the work, and wait until it has stopped."""
        self.is_closed = True
        if self._has_started:
            with self._ended:
                pass

    def _run(self) -> None:
        self._has_started = True
        try:
            self._work(self)
        except BaseException as error:  # it is raised where the results are read
            self._results.put(error)
        finally:
            self._results.put(None)
            self._ended.release()


_STARTED: weakref.WeakSet[Apart[Any]] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    """A thread in native code must not outlive the interpreter."""
    for apart in list(_STARTED):
        apart.end()
