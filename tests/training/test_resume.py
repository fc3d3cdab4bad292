"""A run that is killed at any moment and resumed ends with the same prompt, bit for bit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("seed", "kills"), [(0, 8), *(pytest.param(seed, 30, marks=pytest.mark.slow) for seed in range(1, 4))]
)
def test_killed_runs_end_alike(tmp_path: Path, seed: int, kills: int) -> None:
    paths = [str(TESTS), *(path for path in sys.path if path)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, str(Path(__file__).with_name("killed_run.py")), str(tmp_path), str(seed), str(kills)]
    result = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert int(result.stdout) >= 4
    whole = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "final").rglob("*.*"))
    assert len(whole) == 4
    for name in whole:
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    checkpoints = {path.name for path in (tmp_path / "killed").glob("checkpoint-*")}
    assert checkpoints == {path.name for path in (tmp_path / "whole").glob("checkpoint-*")}
