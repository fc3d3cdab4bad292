"""Waiting for what happens in other threads and processes, on a machine that may be busy with anything else."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

HANG_SECONDS = 600.0
"""Longer than anything takes that does not hang. No test passes or fails by how long it waited."""


def wait_for(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds; fail if it never does."""
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "what was waited for does not happen"
        time.sleep(0.001)


def wait_until_set(event: threading.Event) -> None:
    """Return as soon as the event is set; fail if it never is."""
    assert event.wait(HANG_SECONDS), "what was waited for does not happen"


def join_all(threads: Iterable[threading.Thread]) -> None:
    """Wait for the end of every thread; fail if one does not end."""
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive(), "a thread hangs"


def exit_code_of(child: int) -> int | None:
    """The exit code of a forked child, negative for a signal; None if it hung and had to be killed."""
    deadline = time.monotonic() + HANG_SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None
