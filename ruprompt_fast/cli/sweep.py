"""``ruprompt-fast sweep``: train a grid of configurations and compare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ruprompt_fast.runs.parsing import parse_config
from ruprompt_fast.runs.sweep_grid import SweepConfig

if TYPE_CHECKING:
    from ruprompt_fast.runs.sweep_report import Report
    from ruprompt_fast.runs.sweep_store import CellResult


def run(arguments: Sequence[str]) -> None:
    """Run ``sweep.yaml key=value ...``; prints a line for each cell and the table at the end."""
    config = parse_config(SweepConfig, arguments, prog="ruprompt-fast sweep")
    from ruprompt_fast.runs.sweep import sweep

    console = Console(highlight=False, soft_wrap=True)

    def show(result: CellResult, done: int, total: int) -> None:
        axes = " ".join(f"{name}={value}" for name, value in result.axes.items() if value is not None)
        metrics = " ".join(f"{name} {value:.4g}" for name, value in result.metrics.items()) or result.status
        console.print(f"{done}/{total} {axes}: {metrics}")

    outcome = sweep(config, on_result=show)
    console.print(_table(outcome.report))
    for reason, count in outcome.report.skipped_reasons().items():
        console.print(f"skipped {count}: {reason}")
    console.print(f"{outcome.num_trained} cells trained, {outcome.num_known} known before")
    for file in outcome.files:
        console.print(str(file))


def _table(report: Report) -> Table:
    header, rows = report.table()
    table = Table(title=f"Mean over seeds of {report.quality.label}")
    for name in header:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
