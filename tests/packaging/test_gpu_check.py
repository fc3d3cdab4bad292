"""`make gpu-check` runs without a card, and says what goes wrong; its figures mean nothing here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from gpu import report as reports
from gpu.measurement import ROOT, Setting
from gpu.run_stage import run_stage
from gpu.stage_file import StageFile
from gpu.wanted import CARD, WANTED, judged
from patience import HANG_SECONDS


def run_check(*arguments: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    environment |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "bench.gpu_check", "--no-build", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )


@pytest.mark.slow
def test_all_stages_run_on_the_cpu(tmp_path: Path) -> None:
    run = run_check("--device", "cpu", "--out", str(tmp_path), "--patience", "5")
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("these figures say nothing") == 1
    report = json.loads((tmp_path / reports.REPORT).read_text(encoding="utf-8"))
    assert list(report["stages"]) == ["machine", "tests", "parity", "speed", "training"] == list(report["seconds"])
    assert report["toy"]
    assert report["machine"]["versions"]["torch"]
    assert all(row["met"] is None for row in report[f"wanted on an {CARD}"])
    found = {entry["name"]: entry for entries in report["stages"].values() for entry in entries}
    assert {entry["status"] for entry in found.values()} <= {"passed", "not here"}
    not_here = {name for name, entry in found.items() if entry["status"] == "not here"}
    slow_peers = {"decode, transformers, generate_batch, batch 2", "decode, transformers, compiled, batch 1"}
    assert not_here == {"compute-sanitizer", *slow_peers}
    # Every wanted figure is there under its name; a toy has another batch, and a peer may not be installed.
    for wanted in WANTED:
        name = "decode, batch 2" if wanted.measurement.startswith("decode") else wanted.measurement
        assert wanted.figure in found[name]["figures"] or wanted.figure == "times PEFT", wanted
    assert (tmp_path / "decode.png").stat().st_size > 1000


def test_wanted_figures_are_measured_on_a_card(tmp_path: Path) -> None:
    from gpu import speed, training

    setting = Setting("cuda", False, tmp_path)
    measured = {
        "speed": {measurement.name for measurement in speed.measurements(setting)},
        "training": {measurement.name for measurement in training.measurements(setting)},
    }
    for wanted in WANTED:
        assert wanted.measurement in measured[wanted.stage]


def test_what_is_wanted() -> None:
    name = "decode, batch 1"
    stages = {"speed": [{"name": name, "figures": {"of the byte floor": 0.6, "times transformers": 9.0}}]}
    rows = {row["what"]: row for row in judged(stages, counts=True)}
    assert rows["decode at batch 1, of the byte floor"]["met"] is True
    assert rows["decode at batch 1, times transformers.generate"]["met"] is False
    assert rows["a prompt is free"] == {"what": "a prompt is free", "wanted": 0.97, "measured": None, "met": None}
    assert {row["met"] for row in judged(stages, counts=False)} == {None}


def test_without_a_card_the_check_says_so(tmp_path: Path) -> None:
    run = run_check("--stage", "tests", "--out", str(tmp_path))
    assert run.returncode == 1
    report = json.loads((tmp_path / reports.REPORT).read_text(encoding="utf-8"))
    assert list(report["stages"]) == ["machine"]
    assert "sees no CUDA card" in report["stages"]["machine"][0]["error"]


@pytest.mark.parametrize("rich", [True, False])
def test_the_table(rich: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    if not rich:
        monkeypatch.setattr(reports, "find_spec", lambda name: None)
    failed = {"name": "decode", "status": "failed", "seconds": 1.0, "error": "Traceback\n\nOSError: [broken]\n"}
    figures = {"us": 12.3456, "errors": {"a peer": "ValueError: no"}}
    stages = {"speed": [{**failed, "figures": figures}]}
    machine = {"card": {"name": "H100"}, "driver": "580", "commit": "abc", "missing": ["peft"]}
    report = reports.write_report(Setting("cuda", False, tmp_path), machine, stages, {"speed": 1.0})
    reports.print_report(report, tmp_path)
    printed = capsys.readouterr().out
    for text in ("OSError: [broken]", "12.35", "error: a peer", "ValueError: no", "not installed: peft", "1 failed"):
        assert text in printed
    assert reports.num_failed(report) == 1


MEASURES = """
    import os, sys, time
    sys.path.insert(0, "bench")
    from gpu.measurement import Measurement, NotHere, Setting
    from gpu.run_stage import measure
    from gpu.stage_file import StageFile
    from pathlib import Path

    def absent(record):
        raise NotHere("no such card")

    def crash(record):
        record(before=1)
        print("about to crash", flush=True)
        os._exit(7)

    names = {
        "good": lambda record: record({"a figure": 2.5}),
        "bad": lambda record: 1 / 0,
        "absent": absent,
        "crash": crash,
        "hang": lambda record: time.sleep(1000),
        "last": lambda record: record(figure=3),
    }
    path = Path(sys.argv[1])
    measurements = [Measurement(name, run, 0.5 if name == "hang" else 60.0) for name, run in names.items()]
    sys.exit(measure(measurements, Setting("cpu", True, path), StageFile(path)))
"""


def test_what_fails_is_named_and_the_rest_goes_on(tmp_path: Path) -> None:
    file, changes = StageFile(tmp_path / "stage.json"), []
    command = [sys.executable, "-c", textwrap.dedent(MEASURES), str(file.path)]
    run_stage(command, dict(os.environ), file, HANG_SECONDS, lambda: changes.append(len(file.measurements)))
    found = {entry["name"]: (entry["status"], entry["figures"], entry["error"]) for entry in file.measurements}
    assert found["good"] == ("passed", {"a figure": 2.5}, "")
    assert found["bad"][0] == "failed"
    assert "ZeroDivisionError" in found["bad"][2]
    assert found["absent"] == ("not here", {}, "no such card")
    assert found["crash"][:2] == ("failed", {"before": 1})
    assert "status 7" in found["crash"][2]
    assert "about to crash" in found["crash"][2]
    assert found["hang"][0] == "failed"
    assert "cut off after" in found["hang"][2]
    assert found["last"] == ("passed", {"figure": 3}, "")
    assert set(changes) == {6}


def test_a_stage_that_cannot_start_ends(tmp_path: Path) -> None:
    file = StageFile(tmp_path / "stage.json")
    run_stage([sys.executable, "-c", "import no_such_module"], dict(os.environ), file, HANG_SECONDS, lambda: None)
    [entry] = file.measurements
    assert (entry["name"], entry["status"]) == ("start", "failed")
    assert "no_such_module" in entry["error"]


def test_a_stage_whose_time_is_over_ends(tmp_path: Path) -> None:
    file = StageFile(tmp_path / "stage.json")
    run_stage([sys.executable, "-c", "import time; time.sleep(1000)"], dict(os.environ), file, 0.5, lambda: None)
    [entry] = file.measurements
    assert entry["status"] == "failed"
    assert "the stage's time is over" in entry["error"]


def test_what_a_stage_had_no_time_for_is_in_the_report(tmp_path: Path) -> None:
    file = StageFile(tmp_path / "stage.json")
    code = textwrap.dedent(MEASURES).replace("0.5 if", "60.0 if")
    run_stage([sys.executable, "-c", code, str(file.path)], dict(os.environ), file, 6.0, lambda: None)
    statuses = {entry["name"]: entry["status"] for entry in file.measurements}
    assert statuses["hang"] == "cut off"
    assert statuses["last"] == "not begun"
