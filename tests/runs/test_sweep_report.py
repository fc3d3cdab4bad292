"""What a sweep found, as CSV, table and figures."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from ruprompt_fast.runs.plots import Line, Point
from ruprompt_fast.runs.sweep_grid import AXES, Axes, SkippedCell
from ruprompt_fast.runs.sweep_report import Quality, Report
from ruprompt_fast.runs.sweep_store import CellResult

LOSS = Quality("loss", "held-out loss", is_loss=True)


def result(loss: float | None, **axes: object) -> CellResult:
    status, metrics = ("diverged", {}) if loss is None else ("finished", {"loss": loss, "tokens": 7.0})
    return CellResult(
        digest=f"{sorted(axes.items())}",
        axes={**dict.fromkeys(AXES), **axes},
        template=f"<P*{axes.get('length', 3)}>",
        status=status,
        metrics=metrics,
        seconds=1.5,
        message=None if loss is not None else "NaN",
    )


LENGTHS = Report(
    [
        result(loss, length=length, init=init, seed=seed)
        for length, init, losses in ((1, "random", (4.0, 6.0)), (20, "random", (3.0, None)), (1, "vocab", (2.0, 2.5)))
        for seed, loss in enumerate(losses)
    ],
    [SkippedCell(Axes(1, "labels", seed=0), "too few rows")],
    LOSS,
)


def test_csv_has_every_cell() -> None:
    rows = list(csv.DictReader(LENGTHS.csv().splitlines()))
    columns = ["length", "init", "seed", "template", "status", "loss", "tokens", "seconds", "digest", "message"]
    assert list(rows[0]) == columns
    assert len(rows) == 7
    assert rows[1] | {"digest": ""} == dict(
        zip(columns, ["1", "random", "1", "<P*1>", "finished", "6.0", "7.0", "1.5", "", ""], strict=True)
    )
    assert (rows[3]["status"], rows[3]["loss"], rows[3]["message"]) == ("diverged", "", "NaN")
    assert (rows[6]["init"], rows[6]["status"], rows[6]["message"]) == ("labels", "skipped", "too few rows")


def test_table_averages_over_seeds() -> None:
    header, rows = LENGTHS.table()
    assert header == ["length", "init", "held-out loss", "±", "runs", "diverged"]
    assert rows == [
        ["1", "random", "5.0000", "1.4142", "2", "0"],
        ["20", "random", "3.0000", "-", "2", "1"],
        ["1", "vocab", "2.2500", "0.3536", "2", "0"],
    ]
    markdown = LENGTHS.markdown()
    assert markdown.startswith("| length | init | held-out loss | ± | runs | diverged |\n| --- |")
    assert markdown.endswith("- too few rows: 1 cells\n")


def test_lines_over_length() -> None:
    assert LENGTHS.lines("length", "init") == [
        Line("random", (Point(1, (4.0, 6.0)), Point(20, (3.0,), num_diverged=1))),
        Line("vocab", (Point(1, (2.0, 2.5)),)),
    ]


@pytest.mark.parametrize(("is_loss", "best"), [(True, (1.0, 2.0)), (False, (7.0, 8.0))])
def test_a_point_shows_the_best_of_further_axes(is_loss: bool, best: tuple[float, float]) -> None:
    results = [
        result(loss, length=5, learning_rate=rate, optim=optim, seed=seed)
        for rate, optim, losses in (
            (0.1, "adamw", (1.0, 2.0)),
            (0.1, "adafactor", (7.0, 8.0)),
            (0.3, "adamw", (0.0, None)),  # a seed that diverged is never the best
            (0.3, "adafactor", (None, None)),
        )
        for seed, loss in enumerate(losses)
    ]
    lines = Report(results, [], Quality("loss", "", is_loss)).lines("length", "init")
    assert lines == [Line("all", (Point(5, best),))]


def test_files(tmp_path: Path) -> None:
    assert [path.name for path in LENGTHS.write(tmp_path, "title")] == [
        "results.csv",
        "table.md",
        "quality_over_length.png",
    ]
    assert (tmp_path / "results.csv").read_text(encoding="utf-8") == LENGTHS.csv()
    assert (tmp_path / "table.md").read_text(encoding="utf-8") == LENGTHS.markdown()
    rates = Report([result(1.0, learning_rate=rate) for rate in (0.1, 0.3)], [], LOSS)
    assert [path.name for path in rates.write(tmp_path, "title")][2:] == ["quality_over_learning_rate.png"]
