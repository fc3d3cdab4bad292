"""``ruprompt-fast sweep``."""

from __future__ import annotations

from pathlib import Path

import pytest
from runs.tiny_run import save_model, tiny_config

from ruprompt_fast.cli import main
from ruprompt_fast.runs.config import config_yaml


def test_a_sweep_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_config(tmp_path, save_model(tmp_path / "model"))
    path = tmp_path / "sweep.yaml"
    # A configuration of train, to which overrides add the grid.
    path.write_text(config_yaml(config), encoding="utf-8")
    grid = ["grid.length=[1,3]", "grid.init=[vocab,text]", "grid.seed=[0]", "optimization.max_steps=2"]
    assert main(["sweep", str(path), *grid]) == 0
    shown = capsys.readouterr().out
    assert "1/2 length=1 init=vocab seed=0: train_loss" in shown
    assert "held-out loss, nats per token" in shown
    assert "skipped 2: init text needs provider.text" in shown
    assert "2 cells trained, 0 known before" in shown
    for name in ("results.csv", "table.md", "quality_over_length.png"):
        assert str(tmp_path / "run" / name) in shown

    assert main(["sweep", str(path), *grid, "grid.init=[vocab]"]) == 0
    assert "0 cells trained, 2 known before" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["grid.lengths=[1]"], "Did you mean 'length'?"),
        (["grid.init=[words]"], "grid.init"),
        (["grid.length=[]"], "grid.length must list each of its values once"),
    ],
)
def test_wrong_settings_are_one_line(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(config_yaml(tiny_config(tmp_path)), encoding="utf-8")
    assert main(["sweep", str(path), *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
