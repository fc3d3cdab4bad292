"""What the package does on a CUDA card, in a few minutes: tests, parity, speed and training in one report.

``make gpu-check``, or ``python -m bench.gpu_check`` at the root of a checkout, with what this Python has installed.
Each stage runs in a process of its own within a limit of time, and writes its JSON after every measurement; what fails
is named and the rest goes on. docs/gpu.md says how to read the report.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The benchmarks and the tests' models are imported by their plain names, by the package's own they are not there.
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests")]

from gpu.measurement import Setting  # noqa: E402  (found only now)
from gpu.plots import write_plots  # noqa: E402
from gpu.report import REPORT, num_failed, print_report, write_report  # noqa: E402
from gpu.run_stage import measure, run_stage  # noqa: E402
from gpu.stage_file import StageFile  # noqa: E402

FIRST_S = {"machine": 10.0, "build": 40.0}
"""What everything else needs, and seconds for each."""

LIMITS_S = {"tests": 90.0, "parity": 45.0, "speed": 130.0, "training": 45.0}
"""The stages in order, and seconds for each: all together 6 minutes."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything failed."""
    options = _parser().parse_args(arguments)
    out = Path(options.out) if options.out else ROOT / "build" / "gpu-check"
    setting = Setting(options.device, options.toy or options.device == "cpu", out.resolve(), options.patience)
    if options.child:
        return _child(options.child, setting)
    return _parent(options, setting)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--stage", action="append", choices=list(LIMITS_S), help="only this one; may be given again")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="the CPU rehearses, at toy sizes")
    parser.add_argument("--out", help="folder of the report; build/gpu-check by default")
    parser.add_argument("--toy", action="store_true", help="sizes so small that figures say nothing")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on all limits of time, for slow cards")
    parser.add_argument("--no-build", action="store_true", help="take the extension as it is, however old")
    parser.add_argument("--commit", help="what is checked, where the checkout has no git")
    parser.add_argument("--child", choices=[*FIRST_S, *LIMITS_S], help=argparse.SUPPRESS)
    return parser


class _Check:
    """The stages of one check and their report, which is written again whenever something has been measured."""

    def __init__(self, setting: Setting, commit: str | None) -> None:
        self.report: dict[str, Any] = {}
        self._setting = setting
        self._commit = commit
        self._machine: dict[str, Any] = {
            "card": None,
            "driver": "unknown",
            "commit": commit or "unknown",
            "missing": [],
        }
        self._seconds: dict[str, float] = {}
        self._stages: dict[str, list[dict[str, Any]]] = {}

    def run(self, name: str, limit_s: float, parts: str) -> bool:
        """Run a stage, whose own files go to the folder of parts; returns whether all of it is good."""
        file = StageFile(Path(parts) / f"{name}.json")
        start = time.monotonic()
        command, environment = _command(name, self._setting, parts), _environment(name, self._setting)
        run_stage(command, environment, file, limit_s * self._setting.patience, lambda: self._write(name, file))
        self._seconds[name] = time.monotonic() - start
        self._write(name, file)
        print(f"{name}: {self._seconds[name]:.0f} s", flush=True)
        return all(entry["status"] != "failed" for entry in file.measurements)

    def _write(self, name: str, file: StageFile) -> None:
        self._stages[name] = file.measurements
        if name == "machine" and file.measurements:
            self._machine |= file.measurements[0]["figures"]
            self._machine["commit"] = self._commit or self._machine["commit"]
        self.report = write_report(self._setting, self._machine, self._stages, self._seconds)


def _parent(options: argparse.Namespace, setting: Setting) -> int:
    """Run the stages one after another, each in processes of its own, and report."""
    check = _Check(setting, options.commit)
    first = {name: limit_s for name, limit_s in FIRST_S.items() if name != "build" or not options.no_build}
    asked_for = {name: limit_s for name, limit_s in LIMITS_S.items() if name in (options.stage or LIMITS_S)}
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as parts:
        for name, limit_s in (first | asked_for).items():
            if not check.run(name, limit_s, parts) and name in first:
                break
    print_report(check.report, setting.out / REPORT)
    for path in write_plots(check.report, setting.out):
        print(path)
    return 1 if num_failed(check.report) else 0


def _command(name: str, setting: Setting, parts: str) -> list[str]:
    """What starts a process of a stage, which writes to the folder of parts."""
    command = [sys.executable, "-m", "bench.gpu_check", "--child", name, "--device", setting.device]
    command += ["--out", parts, "--patience", str(setting.patience)]
    return [*command, "--toy"] if setting.toy else command


def _environment(name: str, setting: Setting) -> dict[str, str]:
    """What the benchmarks' modules and the libraries read when they are imported."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment["RUPROMPT_BENCH_MODEL"] = "large"
    if setting.toy:
        environment["RUPROMPT_BENCH_QUICK"] = "1"
    if name == "tests" and not setting.on_card:
        environment["TRITON_INTERPRET"] = "1"  # the kernels themselves; elsewhere their references are fast enough
    return environment


def _child(name: str, setting: Setting) -> int:
    """Measure a stage in this process."""
    stage = importlib.import_module(f"gpu.{name}")
    return measure(stage.measurements(setting), setting, StageFile(setting.out / f"{name}.json"))


if __name__ == "__main__":
    sys.exit(main())
