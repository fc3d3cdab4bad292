"""Stage ``machine``: what the figures are measured on."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from gpu.measurement import ROOT, Measurement, Setting

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


def measurements(setting: Setting) -> list[Measurement]:
    """The stage."""
    return [Measurement("machine", lambda record: record(describe_machine(setting.device)))]


def describe_machine(device: str) -> dict[str, Any]:
    """Card, driver, versions and commit; of what cannot be read, the reason.

    Raises:
        RuntimeError: torch sees no card, and one was asked for.
    """
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
    if not torch.cuda.is_available():
        raise RuntimeError(
            f"torch {torch.__version__} sees no CUDA card here (docs/gpu.md says which wheel a card needs); "
            "DEVICE=cpu, or --device cpu, rehearses the check"
        )
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
    """What a command prints; of one that is not there or fails, the reason."""
    try:
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"unknown ({type(error).__name__})"
    return run.stdout.strip() if run.returncode == 0 else f"unknown ({run.stderr.strip()[:200]})"
