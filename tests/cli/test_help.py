"""What answers without a model: ``--help``, ``--version``, and a command line without a command."""

from __future__ import annotations

import subprocess
import sys

import pytest

import ruprompt_fast
from ruprompt_fast.cli import COMMANDS, main

# Seconds of import each; none of them is needed to say what a command takes.
HEAVY = ("torch", "transformers", "datasets")
CODE = """
import sys
from ruprompt_fast.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    print(stop.code, [name for name in {heavy!r} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)], ids=" ".join
)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    command = [sys.executable, "-c", CODE.format(heavy=HEAVY), *arguments]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert shown.splitlines()[-1] == "0 []"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"ruprompt-fast {ruprompt_fast.__version__}\n"


def test_without_a_command_all_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
    shown = " ".join(capsys.readouterr().err.split())  # long lines are broken
    assert all(f"{name} {summary}" in shown for name, summary in COMMANDS.items())


def test_a_mistyped_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["trian", "config.yaml"])
    assert stop.value.code == 2
    assert "Did you mean 'train'?" in capsys.readouterr().err
