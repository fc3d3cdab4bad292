"""Stage ``build``: what the checkout needs to run from its root, in place; nothing is installed."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

from gpu.measurement import ROOT, Measurement, Record, Setting

PACKAGE = ROOT / "ruprompt_fast"
KERNELS = PACKAGE / "kernels"


def measurements(setting: Setting) -> list[Measurement]:
    """The stage."""
    return [Measurement("build in place", build, 60.0)]


def build(record: Record) -> None:
    """The C++ extension where it is missing or older than its sources, and a link to the kernels' folder.

    Raises:
        RuntimeError: something is missing, or does not compile.
    """
    if _is_built() and not _import_error():
        record(extension="there")
        return
    if not _is_built():
        _build_extension()
        record(extension="built")
    if _import_error() and not KERNELS.exists():
        # The kernels stand at the top level and are imported as ruprompt_fast.kernels; an installation maps that.
        KERNELS.symlink_to(Path("..") / "kernels")
        record(kernels="linked")
    if error := _import_error():
        raise RuntimeError(f"the checkout does not import: {error}")


def _import_error() -> str:
    """Why a new process at the root cannot import the package; empty if it can."""
    command = [sys.executable, "-c", "import ruprompt_fast._C, ruprompt_fast.kernels"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return run.stderr.strip()[-2000:] if run.returncode else ""


def _is_built() -> bool:
    """Whether the extension is newer than its sources."""
    extension = PACKAGE / f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    sources = [ROOT / "setup.py", *(ROOT / "csrc").glob("*/*")]
    return extension.exists() and extension.stat().st_mtime >= max(path.stat().st_mtime for path in sources)


def _build_extension() -> None:
    absent = [name for name in ("pybind11", "setuptools") if find_spec(name) is None]
    if absent:
        raise RuntimeError(
            f"the C++ extension must be built and needs {' and '.join(absent)}, which this Python does not have: "
            f"{sys.executable} -m pip install {' '.join(absent)}"
        )
    command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(f"the C++ extension does not compile: {(run.stdout + run.stderr)[-4000:]}")
