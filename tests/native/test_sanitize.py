"""The scheduler's core under AddressSanitizer and UBSan: the short form of ``make sanitize``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None or shutil.which("c++") is None, reason="needs make and a C++ compiler")
def test_random_operations_are_clean(tmp_path: Path) -> None:
    command = ["make", "sanitize", "SANITIZE_OPERATIONS=50000", f"SANITIZE_DIR={tmp_path}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]
    assert "50000 operations\n" in result.stdout
