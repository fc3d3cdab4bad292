"""The combinations of a grid: which there are, what each trains, which cannot be."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ruprompt_fast.errors import ConfigError
from ruprompt_fast.runs.config import DataConfig, OptimizationConfig, ProviderConfig, TrainConfig
from ruprompt_fast.runs.sweep_grid import Axes, Cell, Grid, SkippedCell, SweepConfig, plan_cells, with_length
from ruprompt_fast.training.task import Task

CLASSES = Task(
    "<P*7>{text}<P*3>", objective="classification", label_field="kind", labels={"v": " стихи", "p": " рассказ"}
)
STYLE = Task("<P*7>", "style")


def base(task: Task = CLASSES, **changes: object) -> TrainConfig:
    return replace(TrainConfig(task, DataConfig("train.jsonl", "held_out.jsonl"), "out"), **changes)


def plan(config: TrainConfig, grid: Grid) -> tuple[list[Cell], list[SkippedCell]]:
    return plan_cells(SweepConfig(**vars(config), grid=grid))


def by_axes(cells: list[Cell]) -> dict[Axes, TrainConfig]:
    return {cell.axes: cell.config for cell in cells}


def test_the_default_grid_is_the_papers() -> None:
    cells, skipped = plan(base(provider=ProviderConfig(text="Это стихи или проза?")), Grid())
    # Two labels do not fit into one row, for each of three seeds.
    assert len(cells) == (5 * 4 - 1) * 3
    assert {cell.reason for cell in skipped} == {"2 labels do not fit into 1 rows"}
    assert {cell.axes.length for cell in cells} == {1, 5, 20, 100, 150}


def test_a_cell_is_the_configuration_with_its_values() -> None:
    config = base(
        provider=ProviderConfig(text="Стихи?", std=0.3), optimization=OptimizationConfig(max_steps=9, optim="adamw")
    )
    grid = Grid([1, 20], ["random", "text", "labels"], learning_rate=[0.1], optim=["adafactor"], seed=[4])
    cells = by_axes(plan(config, grid)[0])
    twenty = cells[Axes(20, "labels", learning_rate=0.1, optim="adafactor", seed=4)]
    assert twenty.task == replace(CLASSES, template="<P*20>{text}<P*3>")
    assert twenty.provider == ProviderConfig(init="labels", labels=[" стихи", " рассказ"])
    assert twenty.optimization == OptimizationConfig(max_steps=9, learning_rate=0.1, optim="adafactor")
    assert twenty.seed == 4
    text = cells[Axes(1, "text", learning_rate=0.1, optim="adafactor", seed=4)]
    assert text.provider == ProviderConfig(init="text", text="Стихи?")
    noise = cells[Axes(1, "random", learning_rate=0.1, optim="adafactor", seed=4)]
    assert noise.provider == ProviderConfig(init="random", std=0.3)


def test_an_axis_left_out_keeps_the_configurations_value() -> None:
    config = base(provider=ProviderConfig("mlp", residual=True, hidden_dim=8), seed=5)
    grid = Grid(length=None, init=None, schedule=["constant", "linear"], warmup_fraction=[0.0], seed=None)
    cells, skipped = plan(config, grid)
    assert not skipped
    for cell, schedule in zip(cells, ["constant", "linear"], strict=True):
        optimization = OptimizationConfig(schedule=schedule, warmup_fraction=0.0)
        assert cell.config == replace(config, optimization=optimization)


def test_providers_that_make_their_own_first_values_run_once() -> None:
    config = base(provider=ProviderConfig(hidden_dim=16))
    grid = Grid([5], ["random", "vocab"], ["tensor", "lstm", "mlp", "residual", "prefix", "prefix-mlp"], seed=[0])
    cells = [cell for cell in plan(config, grid)[0] if cell.axes.provider in ("lstm", "mlp", "residual")]
    assert [cell.axes for cell in cells] == [Axes(5, None, name, seed=0) for name in ("lstm", "mlp", "residual")]
    assert [cell.config.provider for cell in cells] == [
        ProviderConfig("lstm", hidden_dim=16),
        ProviderConfig("mlp", hidden_dim=16),
        ProviderConfig("mlp", hidden_dim=16, residual=True),
    ]


def test_prefix_providers() -> None:
    config = base(provider=ProviderConfig(hidden_dim=16))
    cells, skipped = plan(config, Grid([5], ["vocab", "labels"], ["prefix", "prefix-mlp"], seed=[0]))
    assert [cell.config.provider for cell in cells] == [
        ProviderConfig("prefix"),
        ProviderConfig("prefix", hidden_dim=16),
    ]
    assert {cell.reason for cell in skipped} == {"a prefix provider cannot start from labels"}


def test_seeds_are_outermost() -> None:
    cells, _ = plan(base(STYLE), Grid([1, 5], ["vocab"], seed=[0, 1]))
    assert [(cell.axes.seed, cell.axes.length) for cell in cells] == [(0, 1), (0, 5), (1, 1), (1, 5)]


def test_impossible_combinations_are_skipped_with_the_reason() -> None:
    cells, skipped = plan(base(STYLE), Grid([1, 5]))
    assert {cell.axes.init for cell in cells} == {"random", "vocab"}
    assert {(cell.axes.init, cell.reason) for cell in skipped} == {
        ("text", "init text needs provider.text"),
        ("labels", "init labels needs a classification task or provider.labels; the objective is style"),
    }


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (Grid(length=[]), "grid.length must list"),
        (Grid(length=[5, 5]), "grid.length must list each of its values once"),
        (Grid(length=[0]), "grid.length must be above zero"),
        (Grid(learning_rate=[-1.0]), "grid.learning_rate must be above zero"),
        (Grid(provider=["prefix-mlp"]), "set provider.hidden_dim"),
        (Grid(init=["text"]), "found none: init text needs provider.text"),
    ],
)
def test_grids_that_cannot_be(grid: Grid, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(base(), grid)


def test_length_goes_into_the_first_rows() -> None:
    assert with_length("<s><P*60>{text}<P*20>", 5) == "<s><P*5>{text}<P*20>"
    with pytest.raises(ConfigError, match=r"first <P\*N>; found '<P>Итог:</P>"):
        with_length("<P>Итог:</P>{text}", 5)
    with pytest.raises(ConfigError, match=r"first <P\*N>"):
        plan(base(replace(CLASSES, template="<P>Итог:</P>{text}")), Grid())
