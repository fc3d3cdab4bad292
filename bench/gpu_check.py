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
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# The benchmarks and the tests' models are imported by their plain names, by the package's own they are not there.
sys.path[:0] = [str(ROOT), str(ROOT / "bench"), str(ROOT / "tests")]

from gpu.measurement import Measurement, Setting  # noqa: E402  (found only now)
from gpu.stage_file import StageFile  # noqa: E402

LIMITS_S = {"tests": 80.0, "parity": 40.0, "speed": 150.0, "training": 40.0}
"""The stages in order, and seconds for each; with 45 s for building less than 6 minutes."""

BUILD_LIMIT_S = 45.0


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 1 if anything failed."""
    options = _parser().parse_args(arguments)
    out = Path(options.out) if options.out else ROOT / "build" / "gpu-check"
    setting = Setting(options.device, options.toy or options.device == "cpu", out.resolve(), options.patience)
    if options.child:
        return _child(options.child, setting)
    return _parent(options.stage or list(LIMITS_S), setting, options.commit)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_check", description=__doc__)
    parser.add_argument("--stage", action="append", choices=list(LIMITS_S), help="only this one; may be given again")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="the CPU rehearses, at toy sizes")
    parser.add_argument("--out", help="folder of the report; build/gpu-check by default")
    parser.add_argument("--toy", action="store_true", help="sizes so small that figures say nothing")
    parser.add_argument("--patience", type=float, default=1.0, help="factor on all limits of time, for slow cards")
    parser.add_argument("--commit", help="what is checked, where the checkout has no git")
    parser.add_argument("--child", choices=["build", *LIMITS_S], help=argparse.SUPPRESS)
    return parser


def _parent(stages: list[str], setting: Setting, commit: str | None) -> int:
    """Run the stages one after another, each in processes of its own, and report."""
    from gpu.plots import write_plots
    from gpu.report import REPORT, num_failed, print_report, write_report
    from gpu.run_stage import run_stage

    machine = {"card": None, "driver": "unknown", "commit": commit or "unknown", "missing": []}
    seconds: dict[str, float] = {}
    found: dict[str, list[dict[str, Any]]] = {}
    limits = {"build": BUILD_LIMIT_S, **{name: LIMITS_S[name] for name in LIMITS_S if name in stages}}
    for name, limit_s in limits.items():
        file = StageFile(setting.out / f"{name}.json", fresh=True)
        start = time.monotonic()
        run_stage(_command(name, setting), _environment(setting), file, limit_s * setting.patience)
        seconds[name] = time.monotonic() - start
        found[name] = file.measurements
        if name == "build":
            machine |= next((entry["figures"] for entry in file.measurements if entry["name"] == "machine"), {})
            machine["commit"] = commit or machine["commit"]
        report = write_report(setting, machine, found, seconds)
        print(f"{name}: {seconds[name]:.0f} s", flush=True)
        if name == "build" and num_failed(report):
            break
    print_report(report, setting.out / REPORT)
    for path in write_plots(report, setting.out):
        print(path)
    return 1 if num_failed(report) else 0


def _command(name: str, setting: Setting) -> list[str]:
    command = [sys.executable, "-m", "bench.gpu_check", "--child", name, "--device", setting.device]
    command += ["--out", str(setting.out), "--patience", str(setting.patience)]
    return [*command, "--toy"] if setting.toy else command


def _environment(setting: Setting) -> dict[str, str]:
    """What the benchmarks' modules and the libraries read when they are imported."""
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}
    environment["RUPROMPT_BENCH_MODEL"] = "large"
    if setting.toy:
        environment["RUPROMPT_BENCH_QUICK"] = "1"
    return environment


def _child(name: str, setting: Setting) -> int:
    """Measure a stage in this process."""
    from gpu.run_stage import measure

    file = StageFile(setting.out / f"{name}.json")
    if name == "build":
        return measure(_build_measurements(setting), setting, file)
    stage = importlib.import_module(f"gpu.{name}")
    return measure(stage.measurements(setting), setting, file)


def _build_measurements(setting: Setting) -> list[Measurement]:
    from gpu.build import build
    from gpu.machine import describe_machine

    return [
        Measurement("machine", lambda record: record(describe_machine(setting.device))),
        Measurement("build in place", build, BUILD_LIMIT_S),
    ]


if __name__ == "__main__":
    sys.exit(main())
