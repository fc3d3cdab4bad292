"""What the figures were measured on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu.measurement import ROOT

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "numpy",
    "safetensors",
    "accelerate",
    "peft",
    "pytest",
    "hypothesis",
    "pybind11",
    "rich",
    "matplotlib",
)


def describe_machine(device: str) -> dict[str, Any]:
    """Card, driver, versions and commit; of what cannot be read, the reason."""
    versions = {name: _version(name) for name in PACKAGES}
    return {
        "card": _card() if device == "cuda" else None,
        "driver": _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "versions": {name: found for name, found in versions.items() if found},
        "missing": [name for name, found in versions.items() if not found],
        "compute_sanitizer": shutil.which("compute-sanitizer"),
        "commit": _output(["git", "rev-parse", "HEAD"]),
        "changed_files": _output(["git", "status", "--short", "--untracked-files=no"]).splitlines(),
    }


def _card() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return {
        "name": properties.name,
        "capability": ".".join(map(str, torch.cuda.get_device_capability(0))),
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "compiled_for": torch.cuda.get_arch_list(),
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _output(command: list[str]) -> str:
    """The last output line's command line tools give; of one that is not there or fails, its complaint."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    return run.stdout.strip() if run.returncode == 0 else f"unknown ({run.stderr.strip()[:200]})"
