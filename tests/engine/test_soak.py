"""The short form of ``make soak``."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS


@pytest.mark.parametrize("seed", [0])
def test_random_work_changes_no_text_and_keeps_no_memory(seed: int) -> None:
    # In a process of its own: what other tests leave, and when it is given back, counts as memory of this one's.
    arguments = ["--requests", "30", "--seed", str(seed)]
    command = [sys.executable, str(Path(__file__).with_name("soak.py")), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr[-2000:]
