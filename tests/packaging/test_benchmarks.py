"""The benchmarks of engine and trainer run, on shapes so small that their numbers say nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["decode", "neighbour", "prompts", "mixed", "growth", "training"])
def test_the_benchmark_runs(name: str) -> None:
    # Without real weights, which tests of their own load. Peers that are not installed are skipped in there.
    command = [sys.executable, "-m", "pytest", f"bench/bench_{name}.py", "--benchmark-only", "-q", "-k", "not smollm2"]
    # pytest-benchmark does not time in a process that pytest-xdist has started.
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment = {**inherited, "RUPROMPT_BENCH_QUICK": "1", "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout
    assert "failed" not in run.stdout
    assert "tokens/s" in run.stdout
