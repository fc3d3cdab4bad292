"""``ruprompt-fast demo``."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from ruprompt_fast import bundled
from ruprompt_fast.cli import main


def test_demo_prints_a_table_and_the_figures() -> None:
    command = [sys.executable, "-m", "ruprompt_fast.cli", "demo", "--max-new-tokens", "12"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    for name in [*bundled.PROMPTS, "(none)"]:
        assert name in result.stdout
    last = result.stdout.strip().splitlines()[-1]
    requests, tokens, seconds = re.match(r"(\d+) requests, (\d+) tokens, ([\d.]+) seconds", last).groups()
    assert int(requests) >= 5
    assert 0 < int(tokens) <= 12 * int(requests)
    assert float(seconds) > 0


def test_wrong_settings_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--max-new-tokens", "5000"]) == 2
    error = capsys.readouterr().err
    assert "context" in error
    assert error.count("\n") == 1


def test_no_command_is_a_usage_error() -> None:
    with pytest.raises(SystemExit) as stop:
        main([])
    assert stop.value.code == 2
