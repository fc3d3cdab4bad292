"""Work on a thread of its own, whose results are read as they come."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Generic, TypeVar

from ruprompt_fast.concurrency.threads import check_caller, program_is_ending, start_thread

T = TypeVar("T")


class Apart(Generic[T]):
    """A piece of work that no signal reaches; whoever waits for it may be interrupted.

    Args:
        work: is handed this object; calls :meth:`send`, and stops early where :attr:`is_closed` says so.
    """

    def __init__(self, work: Callable[[Apart[T]], None]) -> None:
        self._work = work
        self._results: SimpleQueue[tuple[T] | BaseException | None] = SimpleQueue()
        self._process = os.getpid()
        self._is_abandoned = False

    @property
    def is_closed(self) -> bool:
        """Whether nobody reads the results any more."""
        return self._is_abandoned or program_is_ending()

    def send(self, result: T) -> None:
        """Hand one result to the reader."""
        self._results.put((result,))

    def results(self) -> Iterator[T]:
        """The results in order, then what ``work`` raised, if it did. Closing the iterator closes the work.

        Raises:
            EngineStepError: the system gives no thread.
            DeadlockError: it is read on a thread of ours, or in a fork of the process that it was made in.
        """
        try:
            check_caller(self._process)
            start_thread(self._run)
            while (result := self._results.get()) is not None:
                if isinstance(result, BaseException):
                    try:
                        raise result
                    finally:
                        del result  # its traceback holds this frame
                yield result[0]
                check_caller(self._process)
        finally:
            self._is_abandoned = True

    def _run(self) -> None:
        try:
            self._work(self)
        except BaseException as error:  # it is raised where the results are read
            self._results.put(error)
        finally:
            self._results.put(None)
