"""Curves as PNG files, drawn without a display."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ruprompt_fast.file_writer import write_atomically
from ruprompt_fast.runs.artifacts import check_can_draw

_INCHES = (7.0, 4.5)
_DOTS_PER_INCH = 120


@dataclass(frozen=True)
class Point:
    """Repeated measurements at one place.

    Attributes:
        x: the place, above zero.
        values: one number for each run that came to its end.
        num_diverged: how many runs did not.
    """

    x: float
    values: tuple[float, ...]
    num_diverged: int = 0

    @property
    def mean(self) -> float:
        """The mean over runs."""
        return statistics.fmean(self.values)

    @property
    def spread(self) -> float:
        """The standard deviation over runs; zero for a single one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0


@dataclass(frozen=True)
class Line:
    """One line of a figure."""

    label: str
    points: tuple[Point, ...]


def draw_lines(path: Path, lines: Sequence[Line], *, title: str, x_label: str, y_label: str) -> None:
    """Draw means with bars of one standard deviation over a logarithmic axis, as the figures of Lester et al. 2021.

    Places where runs diverged get a cross at the lower edge. The file appears complete or not at all.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    check_can_draw()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, NullLocator

    figure = Figure(figsize=_INCHES, dpi=_DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x_label, ylabel=y_label, xscale="log")
    for line in lines:
        drawn = [point for point in line.points if point.values]
        bars = axes.errorbar(
            [point.x for point in drawn],
            [point.mean for point in drawn],
            yerr=[point.spread for point in drawn],
            marker="o",
            capsize=3,
            label=line.label,
        )
        diverged = [point.x for point in line.points if point.num_diverged]
        axes.plot(
            diverged,
            [0.02] * len(diverged),
            linestyle="none",
            marker="x",
            color=bars.lines[0].get_color(),
            transform=axes.get_xaxis_transform(),
        )
    places = sorted({point.x for line in lines for point in line.points})
    axes.xaxis.set_major_locator(FixedLocator(places))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([f"{place:g}" for place in places])
    axes.grid(alpha=0.3)
    axes.legend()
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png"))
