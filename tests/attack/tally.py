"""How attacks of one kind ended."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from ruprompt_fast.errors import RupromptError

Outcome: TypeAlias = Literal["answered", "refused", "wrong", "raw", "hung", "crashed"]

FAULTS: tuple[Outcome, ...] = ("wrong", "raw", "hung", "crashed")
"""Outcomes that the package promises never to have."""

_SHOWN = 5


@dataclass
class Tally:
    """Counts of one kind of attack; may be shared by threads.

    Attributes:
        name: the kind.
        counts: how many attacks had each outcome: answered as it should be, refused with one of our named errors, a
            wrong answer, an error that is not ours, no answer in time, or a process that died.
        problems: the first faults, in words.
    """

    name: str
    counts: Counter[Outcome] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def record(self, outcome: Outcome, what: str = "") -> None:
        """Count one attack; ``what`` tells how to repeat it, and is kept if it is a fault."""
        with self._lock:
            self.counts[outcome] += 1
            if outcome in FAULTS and len(self.problems) < _SHOWN:
                self.problems.append(f"{self.name}: {outcome}: {what}"[:600])

    def attempt(self, what: str, call: Callable[[], object]) -> None:
        """Count what ``call`` does: return, refuse by name, or raise something else."""
        with self.judged(what):
            call()

    @contextmanager
    def judged(self, what: str) -> Iterator[None]:
        """:meth:`attempt` for a block."""
        try:
            yield
        except RupromptError:
            self.record("refused")
        except Exception as error:
            self.record("raw", f"{what}: {type(error).__name__}: {error}")
        else:
            self.record("answered")

    @property
    def num_tried(self) -> int:
        """All attacks."""
        return sum(self.counts.values())

    @property
    def num_faults(self) -> int:
        """Attacks that should not have ended as they did."""
        return sum(self.counts[outcome] for outcome in FAULTS)
