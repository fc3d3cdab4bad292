"""What is asked of the thread that runs the steps, and who is told what they bring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, Protocol, TypeAlias, TypeVar

import torch

T = TypeVar("T")

Answer: TypeAlias = tuple[T | None, BaseException | None]
"""What work returned, and what it raised."""


class Audience(Protocol):
    """Those who want to know of every step. Both methods are for the thread only."""

    def tell(self) -> None:
        """Orders were carried out, or a step has ended."""
        ...

    def fail(self, error: Callable[[], Exception]) -> None:
        """No step will bring what is waited for.

        Args:
            error: makes what to tell each of them.
        """
        ...


class Order(Generic[T]):
    """What a caller wants of the thread, and the way back to it.

    Args:
        answer: is handed what the work returned, or what it or ``done`` raised; on the thread.
        work: what to do; None for a caller that only waits.
        done: whether what the caller waits for has happened; None for a caller that waits for no step.

    Attributes:
        done: as above.
        is_wanted: whether the caller still waits. Work that is not begun yet is left undone if not.
        num_threads: torch's threads in the caller, which the steps use from then on.
    """

    __slots__ = ("__weakref__", "_answer", "_work", "done", "is_wanted", "num_threads")

    def __init__(
        self,
        answer: Callable[[Answer[T]], None],
        work: Callable[[], T] | None = None,
        done: Callable[[], bool] | None = None,
    ) -> None:
        self._answer = answer
        self._work = work
        self.done = done
        self.is_wanted = True
        self.num_threads = torch.get_num_threads()

    def run(self) -> None:
        """Do the work."""
        work, self._work = self._work, None
        if work is None or not self.is_wanted:
            return
        try:
            self._answer((work(), None))
        except BaseException as error:
            self.fail(error)

    def settle(self) -> bool:
        """Answer if what is waited for has happened; whether the caller need not be waited for any more."""
        if not self.is_wanted or self.done is None:
            return True
        try:
            if not self.done():
                return False
            self._answer((None, None))
        except BaseException as error:
            self.fail(error)
        return True

    def fail(self, error: BaseException) -> None:
        """Answer with an error."""
        self._answer((None, error))
