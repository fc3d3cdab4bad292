"""Whether it pays to start a step before the tokens of the one before it are read."""

from __future__ import annotations

import time

_SMOOTHING = 0.1
_LEAST_SHARE = 0.05
_IDLE_SECONDS = 0.25


class RunAhead:
    """Compares the host's part of a step with the time that it waits for the device.

    While the host plans a step, turns tokens into text and answers callers, the device has nothing to do, unless it was
    given its next step before. That costs one step's work for every sequence that turns out to have ended, so it pays
    as soon as the host's part is more than a twentieth of a step.

    Args:
        always: the answer; None measures.
    """

    def __init__(self, always: bool | None = None) -> None:
        self._always = always
        self._host = self._waited = 0.0
        self._before: float | None = None

    @property
    def pays(self) -> bool:
        """Whether the next step should be started at once; not before something was measured."""
        if self._always is not None:
            return self._always
        return self._host > _LEAST_SHARE * (self._host + self._waited)

    def note(self, waited: float) -> None:
        """Note that a step was waited for until now, for so many seconds."""
        now = time.perf_counter()
        if self._before is not None and now - self._before < _IDLE_SECONDS:  # in longer ones no request was running
            host = max(0.0, now - self._before - waited)
            self._host += _SMOOTHING * (host - self._host)
            self._waited += _SMOOTHING * (waited - self._waited)
        self._before = now
