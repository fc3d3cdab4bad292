"""The Python examples of docs/training.md run as written, one after another, and its sweep is a configuration."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from ruprompt_fast.runs.parsing import parse_config
from ruprompt_fast.runs.sweep_grid import SweepConfig, plan_cells

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
SWEEPS = sorted((ROOT / "examples" / "sweeps").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_examples_run(tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text("".join(blocks("python")), encoding="utf-8")
    result = subprocess.run([sys.executable, "example.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "\npacked\n" in f"\n{result.stdout}"
    assert {"my_prompt", "my_deep_prompt", "my_ensemble"} <= {path.name for path in tmp_path.iterdir()}


def test_the_configurations_are_read(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("".join(blocks("yaml")), encoding="utf-8")
    config = parse_config(SweepConfig, [str(tmp_path / "sweep.yaml")], prog="")
    assert len(plan_cells(config)[0]) == 5 * 2 * 3  # neither a text nor labels
    assert set(yaml.safe_load(blocks("yaml")[1])) == {"grid"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_sweeps_are_read(path: Path) -> None:
    cells, skipped = plan_cells(parse_config(SweepConfig, [str(path)], prog=""))
    assert len(cells) > 10
    assert {cell.axes.length for cell in skipped} <= {1}
