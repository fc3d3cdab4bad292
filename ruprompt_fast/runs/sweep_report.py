"""What a sweep found: a CSV of all cells, a table over seeds, and the figures."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ruprompt_fast.file_writer import write_text
from ruprompt_fast.runs.plots import Line, Point, draw_lines
from ruprompt_fast.runs.sweep_grid import AXES, SkippedCell
from ruprompt_fast.runs.sweep_store import AxisValue, CellResult

Key = tuple[AxisValue, ...]


@dataclass(frozen=True)
class Quality:
    """The number that cells are compared by.

    Attributes:
        metric: its name among the metrics.
        label: what it is, with its unit.
        is_loss: whether less is better.
    """

    metric: str
    label: str
    is_loss: bool


@dataclass(frozen=True)
class Report:
    """The results of one grid.

    Attributes:
        results: one for each cell, in the grid's order.
        skipped: combinations that cannot be trained.
        quality: what to compare by.
    """

    results: Sequence[CellResult]
    skipped: Sequence[SkippedCell]
    quality: Quality

    def write(self, folder: Path, title: str) -> list[Path]:
        """Write ``results.csv``, ``table.md`` and a figure for each axis of lengths or rates with more than one value.

        Returns:
            The files.
        """
        files = [folder / "results.csv", folder / "table.md"]
        write_text(files[0], self.csv())
        write_text(files[1], self.markdown())
        for axis, by, label in _FIGURES:
            if len({result.axes.get(axis) for result in self.results}) > 1:
                files.append(folder / f"quality_over_{axis}.png")
                draw_lines(files[-1], self.lines(axis, by), title=title, x_label=label, y_label=self.quality.label)
        return files

    def csv(self) -> str:
        """One row for each cell: axes, template, status, metrics, seconds, digest, message; then the skipped ones."""
        metrics = sorted({name for result in self.results for name in result.metrics})
        columns = [*self._axes(), "template", "status", *metrics, "seconds", "digest", "message"]
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for result in self.results:
            writer.writerow({**asdict(result), **result.axes, **result.metrics})
        for cell in self.skipped:
            writer.writerow({**asdict(cell.axes), "status": "skipped", "message": cell.reason})
        return text.getvalue()

    def table(self) -> tuple[list[str], list[list[str]]]:
        """Header and rows of the table: each combination with its mean quality and standard deviation over seeds."""
        axes = [name for name in self._axes() if name != "seed"]
        header = [*axes, self.quality.label, "±", "runs", "diverged"]
        rows = []
        for key, runs in _grouped(self.results, axes).items():
            values = self._values(runs)
            mean = f"{statistics.fmean(values):.4f}" if values else "-"
            spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else "-"
            shown = ["-" if value is None else f"{value}" for value in key]
            rows.append([*shown, mean, spread, str(len(runs)), str(len(runs) - len(values))])
        return header, rows

    def markdown(self) -> str:
        """The table, and what was skipped, as Markdown."""
        header, rows = self.table()
        lines = [header, ["---"] * len(header), *rows]
        text = "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
        reasons = self.skipped_reasons()
        if reasons:
            text += "\nSkipped:\n\n" + "".join(f"- {reason}: {count} cells\n" for reason, count in reasons.items())
        return text

    def skipped_reasons(self) -> dict[str, int]:
        """How many combinations were skipped, by reason."""
        reasons: dict[str, int] = {}
        for cell in self.skipped:
            reasons[cell.reason] = reasons.get(cell.reason, 0) + 1
        return reasons

    def lines(self, x: str, by: str) -> list[Line]:
        """One line for each value of the axis ``by``: quality over the axis ``x``, mean and spread over seeds.

        Where further axes vary, a point shows their best combination.
        """
        lines: dict[AxisValue, list[Point]] = {}
        for (line, place), runs in _grouped(self.results, [by, x]).items():
            if isinstance(place, int | float):
                lines.setdefault(line, []).append(self._best(float(place), runs))
        return [
            Line("all" if label is None else str(label), tuple(sorted(points, key=lambda point: point.x)))
            for label, points in lines.items()
        ]

    def _best(self, x: float, runs: Sequence[CellResult]) -> Point:
        others = [name for name in AXES if name != "seed"]
        points = []
        for group in _grouped(runs, others).values():
            values = self._values(group)
            points.append(Point(x, tuple(values), num_diverged=len(group) - len(values)))
        sign = 1 if self.quality.is_loss else -1
        return min(points, key=lambda point: (point.num_diverged > 0, sign * point.mean if point.values else 0.0))

    def _values(self, runs: Sequence[CellResult]) -> list[float]:
        return [run.metrics[self.quality.metric] for run in runs if run.status == "finished"]

    def _axes(self) -> list[str]:
        """The axes that some cell has a value on."""
        all_axes = [*(result.axes for result in self.results), *(asdict(cell.axes) for cell in self.skipped)]
        return [name for name in AXES if any(axes.get(name) is not None for axes in all_axes)]


_FIGURES = (
    ("length", "init", "prompt length, rows"),
    ("learning_rate", "provider", "learning rate"),
)


def _grouped(results: Sequence[CellResult], axes: Sequence[str]) -> Mapping[Key, list[CellResult]]:
    groups: dict[Key, list[CellResult]] = {}
    for result in results:
        groups.setdefault(tuple(result.axes.get(name) for name in axes), []).append(result)
    return groups
