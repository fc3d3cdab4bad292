"""Stage ``tests``: every kernel against its reference on the device, the CUDA tests, and compute-sanitizer."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from gpu.kernels import CASES, Case
from gpu.measurement import ROOT, Figures, Measurement, NotHere, Record, Setting, need

# Files with this do something on a card that they do nowhere else.
LOOKS_FOR_A_CARD = "cuda.is_available()"
# Without a card, this one shows that the command works; the whole suite runs the others.
ON_CPU = ("tests/ops/test_splice_cuda.py",)
PROCESSES = min(8, os.cpu_count() or 1)
FILE_LIMIT_S = 60
SANITIZER_LIMIT_S = 38
LONGEST_MESSAGE = 2000

SANITIZED_CASES = ("splice, forward", "paged_decode, batch 1", "write_kv, 512 tokens")


def measurements(setting: Setting) -> list[Measurement]:
    """The stage."""
    return [
        Measurement("tests of the suite", functools.partial(suite, setting), 65.0),
        *(
            Measurement(f"{name}: as its reference", functools.partial(as_reference, name, setting), 20.0)
            for name in CASES
        ),
        Measurement("compute-sanitizer", functools.partial(sanitized, setting), 40.0),
    ]


def as_reference(name: str, setting: Setting, record: Record) -> None:
    """The relative error of a kernel's result, which must be that of one rounding and of sums in another order."""
    need("pytest")  # the tests' tolerances stand beside it
    from tolerances import PRODUCT_ERROR, relative_error

    case = CASES[name](setting)
    found, wanted = (_tensors(case.comparable(run())) for run in (case.run, case.reference))
    for actual, expected in zip(found, wanted, strict=True):
        error, allowed = relative_error(actual, expected), PRODUCT_ERROR[actual.dtype]
        record(relative_error=error, allowed=allowed)
        if not error <= allowed:
            raise AssertionError(f"relative error {error:.3g} in {actual.dtype}, allowed are {allowed:.3g}")


def _tensors(found: Any) -> list[torch.Tensor]:
    """Results as a list, copied: the reference may write to the same memory."""
    return [tensor.clone() for tensor in (found if isinstance(found, tuple) else (found,))]


def suite(setting: Setting, record: Record) -> None:
    """Every file of tests in a process of its own, several at a time: a kernel that traps takes one file with it."""
    need("pytest", "hypothesis")
    files = [ROOT / name for name in ON_CPU]
    if setting.on_card:
        paths = sorted((ROOT / "tests").rglob("test_*.py"))
        files = [path for path in paths if LOOKS_FOR_A_CARD in path.read_text(encoding="utf-8")]
    failures: dict[str, list[str]] = {}
    folder = setting.out / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(PROCESSES if setting.on_card else 1) as pool:
        for path, (counts, failed) in zip(files, pool.map(functools.partial(_run_file, folder), files), strict=True):
            record({str(path.relative_to(ROOT)): counts})
            if failed:
                failures[path.name] = failed
    if failures:
        record(failures=failures)
        raise AssertionError("\n".join(f"{name}: {text}" for name, texts in failures.items() for text in texts)[:8000])


def _run_file(folder: Path, path: Path) -> tuple[Figures, list[str]]:
    """Counts of a file's tests by outcome, and a message for each that failed."""
    report = folder / f"{path.stem}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junit-xml={report}", str(path)]
    # A process under pytest-xdist has settings that are not meant for this one.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=FILE_LIMIT_S, check=False
        )
        ending = f"status {run.returncode}: {(run.stdout + run.stderr)[-LONGEST_MESSAGE:]}"
        good = run.returncode in (0, 5)  # 5: nothing there to run
    except subprocess.TimeoutExpired:
        ending, good = f"cut off after {FILE_LIMIT_S} s", False
    cases = list(_cases(report))
    failed = [message for _, message in cases if message]
    counts = {outcome: [found for found, _ in cases].count(outcome) for outcome in ("passed", "failed", "skipped")}
    return counts, failed or ([] if good else [ending])


def _cases(report: Path) -> Iterator[tuple[str, str]]:
    """Outcome and, of a failure, the message of each test."""
    if not report.exists():
        return
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        problem = next((part for part in case if part.tag in ("failure", "error")), None)
        if problem is not None:
            yield "failed", f"{case.get('name')}: {problem.get('message', '')[:LONGEST_MESSAGE]}"
        else:
            yield ("passed" if case.find("skipped") is None else "skipped"), ""


def sanitized(setting: Setting, record: Record) -> None:
    """A few kernels once at small sizes under compute-sanitizer, which finds accesses out of bounds."""
    tool = shutil.which("compute-sanitizer")
    if tool is None or not setting.on_card:
        raise NotHere("needs a card and compute-sanitizer" if tool is None else "needs a card")
    code = f"from gpu.tests import run_small; run_small({SANITIZED_CASES!r})"
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", code]
    path = os.pathsep.join(map(str, (ROOT, ROOT / "bench", ROOT / "tests")))
    # Memory of its own for every tensor, without the slack that torch's allocator leaves.
    environment = {**os.environ, "PYTHONPATH": path, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        run = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=SANITIZER_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise NotHere(f"compute-sanitizer was not done after {SANITIZER_LIMIT_S} s") from error
    output = run.stdout + run.stderr
    record(status=run.returncode, output=output[-LONGEST_MESSAGE:])
    if "Device not supported" in output:
        raise NotHere("compute-sanitizer does not support this device")
    if run.returncode:
        raise AssertionError(f"compute-sanitizer ended with {run.returncode}")


def run_small(names: tuple[str, ...]) -> None:
    """Run cases at toy size on the card."""
    setting = Setting("cuda", True, ROOT)
    for name in names:
        case: Case = CASES[name](setting)
        case.run()
        torch.cuda.synchronize()
