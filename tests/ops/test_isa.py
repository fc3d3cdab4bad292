"""Every instruction set that the CPU kernels know gives the same results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ruprompt_fast import _C

HERE = Path(__file__).parent
LEVELS = ["generic", "avx2", "avx512"]


def run(level: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RUPROMPT_FAST_ISA": level}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("level", [level for level in LEVELS if LEVELS.index(level) < LEVELS.index(_C.cpu_isa())])
def test_a_lower_level_passes_the_same_tests(level: str) -> None:
    names = ("test_splice.py", "test_splice_grad.py", "test_paged_attention.py", "test_int8_linear.py")
    files = [str(HERE / name) for name in names]
    result = run(level, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-k", "not opcheck", *files)
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-2000:]


def test_the_environment_lowers_the_level_and_never_raises_it() -> None:
    code = "import torch; from ruprompt_fast import _C; print(_C.cpu_isa())"
    assert run("generic", "-c", code).stdout.strip() == "generic"
    assert run("avx512", "-c", code).stdout.strip() == _C.cpu_isa()
    wrong = run("sse", "-c", code)
    assert wrong.returncode != 0
    assert "RUPROMPT_FAST_ISA is 'sse'; it must be generic, avx2 or avx512" in wrong.stderr
