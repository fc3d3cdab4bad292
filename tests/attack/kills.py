"""Runs that are killed, interrupted or started twice at once; the work is done by :mod:`attack.kills_worker`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from attack.tally import Tally
from patience import HANG_SECONDS

# What the worker may take beyond the time it is given: its imports, and the run that it is in, which may hang.
GRACE_SECONDS = 2 * HANG_SECONDS


def attack(seconds: float, seed: int) -> Tally:
    """Kill, interrupt and race runs in a process of its own, as it forks, for about so long."""
    tally = Tally("kills")
    paths = [str(Path(__file__).parents[1]), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "attack.kills_worker", folder, str(seconds), str(seed)]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )
        try:
            out, err = process.communicate(timeout=seconds + GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            out, err = process.communicate()
            tally.record("hung", "the worker did not end")
    for line in out.splitlines():
        outcome, what = json.loads(line)
        tally.record(outcome, what)
    if process.returncode not in (0, -9):
        tally.record("crashed", f"the worker ended with {process.returncode}: {err[-400:]}")
    return tally
