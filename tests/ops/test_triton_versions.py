"""The Triton kernels compile with every version of Triton that docs/gpu.md names: ``make triton-versions``.

Each version is a download of 200 MB and two minutes of work, so it runs where it is asked for only.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

HERE = Path(__file__).parent

# The oldest that the "triton" extra takes, those that come with torch 2.11 for CUDA 13 and with torch 2.14, and the one
# that is here.
VERSIONS = ["3.4.0", "3.6.0", "3.8.0", "installed"]

# What another version does a little worse: 8 or 16 bytes on the stack, which 3.8.0's code never touches.
WORSE = {
    "3.4.0": ["test_prefill_compiled.py::test_kernel[float16-32-True-80]"],
    "3.6.0": ["test_sample_compiled.py::test_rows_are_read_in_128_bit_pieces[float16-70]"],
    "3.8.0": ["test_sample_compiled.py::test_rows_are_read_in_128_bit_pieces[float16-90]"],
}


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_VERSIONS") != "1", reason="takes minutes; run it by make triton-versions")
@pytest.mark.parametrize("version", VERSIONS)
def test_all_kernels_compile(version: str) -> None:
    with TemporaryDirectory() as folder:
        environment = {**os.environ, "COMPILE_FOR": "70 75 80 90", "TRITON_CACHE_DIR": f"{folder}/cache"}
        if version != "installed":
            install(version, folder)
            environment["PYTHONPATH"] = folder
            assert version_in(environment) == version
        files = sorted(str(path.relative_to(HERE.parents[1])) for path in HERE.glob("test_*_compiled.py"))
        worse = [f"--deselect=tests/ops/{test}" for test in WORSE.get(version, [])]
        options = ["-q", "--tb=short", "-p", "no:cacheprovider", "-p", "no:xdist"]
        environment.pop("PYTEST_ADDOPTS", None)
        result = run([sys.executable, "-m", "pytest", *options, *files, *worse], environment)
        assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]


def install(version: str, folder: str) -> None:
    """Put a version into a folder; skip the test if it cannot be had."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--target", folder]
    result = run([sys.executable, "-m", "pip", "install", *options, f"triton=={version}"], dict(os.environ))
    if result.returncode:
        pytest.skip(f"triton {version} cannot be installed here: {result.stderr.strip()[-500:]}")


def version_in(environment: dict[str, str]) -> str:
    return run([sys.executable, "-c", "import triton; print(triton.__version__)"], environment).stdout.strip()


def run(command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, check=False)
