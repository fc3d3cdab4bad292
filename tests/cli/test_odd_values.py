"""Whatever is on the command line: one line on standard error and a status, never a traceback."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from attack.command_line import KINDS, VALUES, base_arguments, judge, keys_of, make_files, odd_files
from attack.tally import Tally
from runs.tiny_run import save_model, tiny_config

from ruprompt_fast.cli import main
from ruprompt_fast.runs.config import config_yaml


@pytest.mark.parametrize("command", KINDS)
def test_odd_values(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every key with an odd value, drawn for each; the attack goes through all of them."""
    monkeypatch.chdir(tmp_path)
    make_files(tmp_path)
    tally = Tally(command)
    rng = random.Random(command)
    for key in keys_of(KINDS[command]):
        value = rng.choice(VALUES + odd_files(tmp_path))
        judge(tally, [command, *base_arguments(command, tmp_path, is_complete=False), f"{key}={value}"])
    assert not tally.num_faults, tally.problems


TRAIN = ["train", "task.template=<P>{text}", "task.target={text}", "output=x", "data.train=nowhere.jsonl"]
NAMED = {
    "not UTF-8": (["train", "output=\udcff"], "argument 2 must be UTF-8"),
    "null byte": (["train", "output=a\0b"], "argument 2 must be text without null bytes"),
    "long path": (["train", "/" + "y/" * 2500 + "x.yaml"], "File name too long"),
    "folder for a file": (["train", "."], "a YAML file"),
    "no file": (["sweep", "nowhere.yaml"], "nowhere.yaml"),
    "empty": (["train", ""], "YAML"),
    "unknown": (["generate", "--promt", "x"], "Did you mean 'prompt'?"),
    "nan": ([*TRAIN, "optimization.learning_rate=.nan"], "learning_rate"),
    "a folder as data": ([*TRAIN, "data.train=/proc/self/mem"], "the suffix ''"),
    "huge": (["evaluate", "batch_size=" + "9" * 5000], "batch_size"),
    "no name": (["generate", "prompt=x", "input=y", "output=//"], "output must name a file"),
    "negative": (["evaluate", "prompt=x", "data=y", "batch_size=-1"], "batch_size"),
}


@pytest.mark.parametrize("name", NAMED)
def test_what_is_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = NAMED[name]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert len(said) < 2100
    assert not list(tmp_path.iterdir())


def run(arguments: list[str], prefix: str = "", **settings: object) -> subprocess.Popen[str]:
    code = f"{prefix}import sys; from ruprompt_fast.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": ""}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **settings)  # type: ignore[call-overload,no-any-return]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command that shows a finished run once more."""
    folder = tmp_path_factory.mktemp("trained")
    config = tiny_config(folder, save_model(folder / "model"), optimization={"max_steps": 1})
    (folder / "config.yaml").write_text(config_yaml(config), encoding="utf-8")
    command = ["train", str(folder / "config.yaml"), "resume=true"]
    assert main(command) == 0
    return command


def test_output_that_nobody_reads(trained: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = run(trained, stdout=writer)
    os.close(writer)
    _, said = process.communicate()
    assert process.returncode == 1
    assert "Traceback" not in said
    assert "Exception ignored" not in said


def test_output_without_room(trained: list[str]) -> None:
    with open("/dev/full", "w") as full:
        process = run(trained, stdout=full)
        _, said = process.communicate()
    assert process.returncode == 1
    assert "No space left on device" in said
    assert len(said.splitlines()) == 1


def test_closed_standard_files(trained: list[str]) -> None:
    process = run(trained, prefix="import os; os.close(0); os.close(1); ")
    _, said = process.communicate()
    assert process.returncode in (0, 1)
    assert "Traceback" not in said


INTERRUPT_AT = """
import os, signal, sys
def hook(event, values):
    if event == "os.rename" and str(values[1]).endswith({!r}): os.kill(os.getpid(), signal.SIGINT)
sys.addaudithook(hook)
"""


def test_an_interrupted_run_goes_on(trained: list[str], tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [*trained, f"output={output}", "optimization.max_steps=25", "optimization.save_steps=1"]
    # It interrupts itself when it writes the manifest of its second checkpoint.
    process = run(command, stdout=subprocess.DEVNULL, prefix=INTERRUPT_AT.format("checkpoint-2/complete.json"))
    _, said = process.communicate()
    assert process.returncode == 130
    assert [line for line in said.splitlines() if line.startswith("ruprompt-fast")] == [
        "ruprompt-fast: interrupted; start it again, with resume=true for train, and it goes on"
    ]
    assert "Traceback" not in said
    assert not list(output.rglob("*.lock"))
    assert main(command) == 0
    assert main([*trained, f"output={tmp_path / 'whole'}", *command[-2:]]) == 0
    name = "prompt_provider.safetensors"
    assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
