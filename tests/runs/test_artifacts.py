"""The output folder of a run: what may be written where, and files that are whole or not there."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from runs.tiny_run import tiny_config

from ruprompt_fast import errors
from ruprompt_fast.runs import artifacts
from ruprompt_fast.runs.config import config_yaml

HISTORY = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": 2.0}, {"step": 2, "eval_loss": 2.5}]


def test_a_folder_goes_through_its_states(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    folder = Path(config.output)
    artifacts.check_output(folder, config)
    artifacts.begin(folder, config)
    assert artifacts.is_run(folder)
    assert not artifacts.is_finished(folder)
    with pytest.raises(errors.OutputExistsError, match="an interrupted run.*resume=true"):
        artifacts.check_output(folder, config)
    artifacts.check_output(folder, replace(config, resume=True))
    artifacts.write_metrics(folder, {"train_loss": 1.5})
    assert artifacts.is_finished(folder)
    assert artifacts.read_metrics(folder) == {"train_loss": 1.5}
    with pytest.raises(errors.OutputExistsError, match="a finished run"):
        artifacts.check_output(folder, config)


def test_a_resumed_run_keeps_its_configuration(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    folder = Path(config.output)
    artifacts.begin(folder, config)
    moved = replace(config, resume=True, output=str(folder.rename(tmp_path / "moved")))
    artifacts.check_output(Path(moved.output), moved)
    artifacts.begin(Path(moved.output), moved)
    assert (tmp_path / "moved" / "config.yaml").read_text(encoding="utf-8") == config_yaml(config)


@pytest.mark.parametrize("content", [None, "- a\n", "a: [\n"])
def test_a_folder_that_is_no_run_is_not_resumed(content: str | None, tmp_path: Path) -> None:
    config = replace(tiny_config(tmp_path), resume=True, output=str(tmp_path))  # which holds its rows
    if content is not None:
        (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(errors.CheckpointError):
        artifacts.check_output(tmp_path, config)


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    Path(config.output).write_text("", encoding="utf-8")
    with pytest.raises(errors.OutputExistsError, match="something else"):
        artifacts.check_output(Path(config.output), config)


def test_history_is_json_lines(tmp_path: Path) -> None:
    artifacts.write_history(tmp_path, HISTORY)
    lines = (tmp_path / "history.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == HISTORY


def test_the_curve_is_a_picture_and_leaves_matplotlib_alone(tmp_path: Path) -> None:
    artifacts.draw_curve(tmp_path, HISTORY, "ответы")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in sys.modules or sys.modules["matplotlib.pyplot"].get_fignums() == []


def test_a_run_without_figures_is_not_finished(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="finished run"):
        artifacts.read_metrics(tmp_path)


def test_without_matplotlib_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(errors.MissingDependencyError, match=r"ruprompt-fast\[train\]"):
        artifacts.check_can_draw()
