"""Sweeps: what is trained, what is known already, what goes on after the process was killed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runs.tiny_run import CLASSIFICATION, LABELLED_ROWS, ROWS, TASK, save_model, tiny_config, write_rows

from ruprompt_fast import Prompt, errors
from ruprompt_fast.runs.config import DataConfig, OptimizationConfig, ProviderConfig, config_yaml
from ruprompt_fast.runs.sweep import SweepOutcome, cell_digest, sweep
from ruprompt_fast.runs.sweep_grid import Grid, SweepConfig
from ruprompt_fast.runs.sweep_store import CellResult
from ruprompt_fast.runs.train import train

GRID = Grid(length=[1, 3], init=["random", "vocab"], seed=[0])
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("model"))


def sweep_config(folder: Path, model: Path, grid: Grid = GRID, **settings: Any) -> SweepConfig:
    """A sweep of two steps per cell whose data and output are in ``folder``."""
    settings = {"optimization": {"max_steps": 2}, **settings}
    return SweepConfig(**vars(tiny_config(folder, model, **settings)), grid=grid)


@pytest.fixture(scope="module")
def finished(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[SweepConfig, SweepOutcome]:
    config = sweep_config(tmp_path_factory.mktemp("finished"), model)
    return config, sweep(config)


def csv_rows(config: SweepConfig) -> list[dict[str, str]]:
    with (Path(config.output) / "results.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_every_cell_is_trained_and_shown(finished: tuple[SweepConfig, SweepOutcome]) -> None:
    config, outcome = finished
    assert (outcome.num_trained, outcome.num_known) == (4, 0)
    rows = csv_rows(config)
    assert [(row["length"], row["init"], row["template"]) for row in rows] == [
        (length, init, f"<P*{length}>{{text}}<P*2>") for length in ("1", "3") for init in ("random", "vocab")
    ]
    assert {row["status"] for row in rows} == {"finished"}
    assert [float(row["eval_loss"]) for row in rows] == [
        result.metrics["eval_loss"] for result in outcome.report.results
    ]
    assert len({row["eval_loss"] for row in rows}) == 4
    folder = Path(config.output)
    assert [file.name for file in outcome.files] == ["results.csv", "table.md", "quality_over_length.png"]
    assert (folder / "quality_over_length.png").read_bytes().startswith(PNG)
    table = (folder / "table.md").read_text(encoding="utf-8")
    assert f"| 1 | random | {float(rows[0]['eval_loss']):.4f} | - | 1 | 0 |" in table


def test_a_cell_is_what_training_alone_gives(finished: tuple[SweepConfig, SweepOutcome], tmp_path: Path) -> None:
    config, outcome = finished
    alone = tiny_config(tmp_path, Path(config.model.name), task=replace(TASK, template="<P>{text}<P*2>"))
    alone = replace(alone, provider=ProviderConfig(init="random"), optimization=OptimizationConfig(2, batch_size=4))
    result = outcome.report.results[0]
    trained = train(alone)
    assert trained.metrics["eval_loss"] == result.metrics["eval_loss"]
    cell = Path(config.output) / "cells" / result.digest
    assert torch.equal(Prompt.from_pretrained(cell).rows(), trained.prompt.rows())
    assert not (cell / "checkpoints").exists()


def test_only_new_cells_are_trained(finished: tuple[SweepConfig, SweepOutcome]) -> None:
    config, outcome = finished
    seen: list[tuple[CellResult, int, int]] = []
    wider = replace(config, grid=Grid([1, 3, 5], ["vocab"], seed=[0]), data=replace(config.data, on_bad_row="skip"))
    again = sweep(wider, on_result=lambda *event: seen.append(event))
    assert (again.num_trained, again.num_known) == (1, 2)
    assert [result.digest for result in again.report.results[:2]] == [
        result.digest for result in outcome.report.results if result.axes["init"] == "vocab"
    ]
    assert [(result.axes["length"], number, total) for result, number, total in seen] == [
        (1, 1, 3),
        (3, 2, 3),
        (5, 3, 3),
    ]
    assert sweep(config).num_trained == 0  # the first grid's results stayed
    assert len(csv_rows(config)) == 4


def test_what_decides_the_result_decides_the_digest(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    changed = [
        replace(config, seed=1),
        replace(config, task=replace(TASK, target="{answer}")),
        replace(config, provider=ProviderConfig(init="random")),
        replace(config, optimization=replace(config.optimization, max_steps=7)),
        replace(config, optimization=replace(config.optimization, learning_rate=0.5)),
        replace(config, ensemble_size=2),
    ]
    digests = [cell_digest(one, "content") for one in [config, *changed]] + [cell_digest(config, "other rows")]
    assert len(set(digests)) == len(changed) + 2
    same = [
        replace(config, output="elsewhere", prompt_name="имя", data=DataConfig("moved.jsonl")),
        replace(config, optimization=replace(config.optimization, save_steps=1)),
        # The recipe's own rate.
        replace(config, optimization=replace(config.optimization, learning_rate=_recipe_rate(config))),
    ]
    assert {cell_digest(one, "content") for one in same} == {digests[0]}


def _recipe_rate(config: Any) -> float:
    from ruprompt_fast.runs.start import make_provider
    from ruprompt_fast.training import recipe_for

    return recipe_for(make_provider(config.provider, 0)).learning_rate


def test_other_rows_are_trained_again(finished: tuple[SweepConfig, SweepOutcome], tmp_path: Path) -> None:
    config, _ = finished
    output = tmp_path / "sweep"
    one = replace(config, output=str(output), grid=Grid([1], ["vocab"], seed=[0]))
    assert sweep(one).num_trained == 1
    moved = replace(one.data, train=write_rows(tmp_path / "moved.jsonl", ROWS))
    assert sweep(replace(one, data=moved)).num_trained == 0
    other = replace(one.data, train=write_rows(tmp_path / "other.jsonl", ROWS[:-1]))
    assert sweep(replace(one, data=other)).num_trained == 1


def test_a_classification_is_compared_by_accuracy(model: Path, tmp_path: Path) -> None:
    grid = Grid(length=[1, 2], init=["labels"], learning_rate=[0.01, 0.1], seed=[0])
    config = sweep_config(tmp_path, model, grid, task=CLASSIFICATION, rows=LABELLED_ROWS)
    outcome = sweep(config)
    rows = csv_rows(config)
    assert [row["status"] for row in rows].count("finished") == 2
    skipped = [row for row in rows if row["status"] == "skipped"]
    assert {(row["length"], row["message"]) for row in skipped} == {("1", "2 labels do not fit into 1 rows")}
    assert {float(row["eval_accuracy"]) for row in rows[:2]} <= {count / 12 for count in range(13)}
    assert outcome.report.quality.label == "held-out accuracy"
    # One length is left, and two rates.
    assert [file.name for file in outcome.files][2:] == ["quality_over_learning_rate.png"]


def test_a_diverged_cell_is_noted_and_the_sweep_goes_on(model: Path, tmp_path: Path) -> None:
    grid = Grid(length=None, init=None, learning_rate=[1e30, 0.01], optim=["adamw"], seed=None)
    optimization = {"max_steps": 3, "max_grad_norm": 1e30}
    config = sweep_config(tmp_path, model, grid, optimization=optimization)
    outcome = sweep(config)
    assert [result.status for result in outcome.report.results] == ["diverged", "finished"]
    rows = csv_rows(config)
    assert (rows[0]["eval_loss"], rows[1]["message"]) == ("", "")
    assert "the loss is nan" in rows[0]["message"]
    again = sweep(config)
    assert (again.num_trained, again.num_known) == (0, 2)
    assert (Path(config.output) / "quality_over_learning_rate.png").read_bytes().startswith(PNG)


def test_a_killed_sweep_goes_on(model: Path, tmp_path: Path) -> None:
    """Killed with SIGKILL in its second cell, whose checkpoints go on; the first cell's line is not written again."""
    settings = {"max_steps": 80, "save_steps": 4}
    grid = Grid(length=[1, 3], init=["random"], seed=[0])
    config = sweep_config(tmp_path, model, grid, optimization=settings)
    (tmp_path / "sweep.yaml").write_text(config_yaml(config), encoding="utf-8")
    command = [sys.executable, "-m", "ruprompt_fast.cli", "sweep", str(tmp_path / "sweep.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    cells, results = Path(config.output) / "cells", Path(config.output) / "results.jsonl"
    try:
        while process.poll() is None and not _is_in_the_second_cell(results, cells):
            time.sleep(0.005)
    finally:
        process.kill()
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr.decode()
    before = results.read_bytes()
    assert before.count(b"\n") == 1
    results.write_bytes(before + b'{"digest": "half a li')
    outcome = sweep(config)
    assert (outcome.num_trained, outcome.num_known) == (1, 1)
    assert results.read_bytes().startswith(before)
    whole = sweep(replace(config, output=str(tmp_path / "whole"), grid=replace(grid, length=[3])))
    assert outcome.report.results[1].metrics == whole.report.results[0].metrics


def _is_in_the_second_cell(results: Path, cells: Path) -> bool:
    is_first_known = results.is_file() and results.stat().st_size > 0
    return is_first_known and any(cells.glob("*/checkpoints/checkpoint-*/complete.json"))


def test_a_cell_that_was_cut_off_before_it_began_begins_again(
    finished: tuple[SweepConfig, SweepOutcome], tmp_path: Path
) -> None:
    config, outcome = finished
    config = replace(config, output=str(tmp_path / "sweep"), grid=Grid([1], ["random"], seed=[0]))
    (tmp_path / "sweep" / "cells" / outcome.report.results[0].digest / "rest").mkdir(parents=True)
    (tmp_path / "sweep" / "results.jsonl").touch()
    assert sweep(config).report.results[0].metrics == outcome.report.results[0].metrics


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"data": {"validation": None}}, errors.ConfigError, "give data.validation"),
        ({"provider": ProviderConfig(residual=True)}, errors.ConfigError, "provider.kind=tensor has the settings"),
        ({"grid": Grid([1, 3, 500], ["random"])}, errors.ContextLengthError, "128"),
        ({"grid": Grid([1, 100], ["vocab"])}, errors.PromptTooLongError, "102 rows"),
        ({"grid": Grid([1, 3], ["vocab"], seed=[-1])}, errors.ConfigError, "seed"),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_cell(
    settings: dict[str, Any], error: type[Exception], message: str, model: Path, tmp_path: Path
) -> None:
    task = replace(TASK, truncation_field=None)
    with pytest.raises(error, match=message):
        sweep(sweep_config(tmp_path, model, **{"task": task, **settings}))
    assert not (tmp_path / "run").exists()


def test_another_folder_is_left_alone(model: Path, tmp_path: Path) -> None:
    config = sweep_config(tmp_path, model)
    Path(config.output).mkdir()
    kept = Path(config.output) / "notes.txt"
    kept.touch()
    with pytest.raises(errors.OutputExistsError, match="that of a sweep with results.jsonl; found something else"):
        sweep(config)
    assert list(Path(config.output).iterdir()) == [kept]
