"""Runs a stage in processes of its own: one that crashes, hangs or breaks its CUDA context costs one measurement."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from gpu.measurement import ROOT, Figures, Measurement, NotHere, Setting
from gpu.stage_file import StageFile

POLL_S = 0.1
BROKEN_CONTEXT = 70
"""Exit status of a process whose CUDA context is of no more use."""


def measure(measurements: Sequence[Measurement], setting: Setting, file: StageFile) -> int:
    """Run what has not begun yet; returns the exit status of this process."""
    file.plan([measurement.name for measurement in measurements])
    for measurement in measurements:
        if measurement.name not in file.begun:
            _measure(measurement, setting, file)
            if setting.on_card and not _context_works():
                return BROKEN_CONTEXT
    return 0


def _measure(measurement: Measurement, setting: Setting, file: StageFile) -> None:
    entry = file.begin(measurement.name, measurement.limit_s * setting.patience)

    def record(figures: Figures | None = None, /, **more: Any) -> None:
        entry["figures"].update({**(figures or {}), **more})
        file.write()

    try:
        measurement.run(record)
    except NotHere as reason:
        file.end(entry, "not here", str(reason))
    except Exception:
        # This program reports: whatever goes wrong in one measurement is its result, and the others go on.
        file.end(entry, "failed", traceback.format_exc())
    else:
        file.end(entry, "passed")


def _context_works() -> bool:
    """Whether the device still computes: an illegal access or a trap ends a process' CUDA context for good."""
    import torch  # takes seconds, and only a card's stages need it here

    try:
        torch.cuda.synchronize()
        return bool(torch.ones(2, device="cuda").sum().item() == 2)
    except Exception:  # of many kinds, and the same to us
        return False


def run_stage(
    command: Sequence[str], environment: dict[str, str], file: StageFile, limit_s: float, on_change: Callable[[], None]
) -> None:
    """Have processes run a stage until all of it was measured or its time is over.

    Args:
        command: what starts one; it skips what the file has already.
        environment: its environment.
        file: the stage's file.
        limit_s: seconds for all of it.
        on_change: called after the file has changed.
    """
    deadline = time.monotonic() + limit_s
    while True:
        begun = len(file.begun)
        with file.log.open("ab") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            why = _watch(process, file, deadline, on_change)
        file.reload()
        time_is_over = time.monotonic() >= deadline
        if (entry := file.running) is not None:
            file.end(entry, "cut off" if time_is_over else "failed", f"{why}\n{file.log_tail()}")
        elif process.returncode != 0 and len(file.begun) == begun:
            # It does not even get as far as the next measurement.
            file.end(file.begin("start", 0.0), "failed", f"{why}\n{file.log_tail()}")
            time_is_over = True
        on_change()
        if process.returncode == 0 or time_is_over:
            return


def _watch(process: subprocess.Popen[bytes], file: StageFile, deadline: float, on_change: Callable[[], None]) -> str:
    """Wait for a process, or end it when a limit is over; returns how it ended."""
    try:
        while process.poll() is None:
            time.sleep(POLL_S)
            if file.reload():
                on_change()
            entry = file.running
            if time.monotonic() >= deadline:
                return "cut off: the stage's time is over"
            if entry is not None and time.time() > entry["began"] + entry["limit_s"]:
                return f"cut off after {entry['limit_s']:.0f} s"
        return f"the process ended with status {process.returncode}"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # with all that it has started
        process.wait()
