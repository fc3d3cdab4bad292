"""Figures are PNG files that appear complete."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ruprompt_fast.runs.plots import Line, Point, draw_lines

LINES = [
    Line("vocab", (Point(1, (3.0, 3.2)), Point(20, (2.0,)), Point(100, (), num_diverged=2))),
    Line("random", (Point(1, (3.5, 3.6)), Point(20, (2.4, 2.6), num_diverged=1))),
]


def png_size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:])
    return width, height


def test_a_figure_is_a_png(tmp_path: Path) -> None:
    path = tmp_path / "figure.png"
    draw_lines(path, LINES, title="Пословицы", x_label="rows", y_label="nats")
    assert png_size(path) == (840, 540)
    assert list(tmp_path.iterdir()) == [path]


def test_other_lines_make_another_figure(tmp_path: Path) -> None:
    for name, lines in (("both", LINES), ("same", LINES), ("one", LINES[:1])):
        draw_lines(tmp_path / name, lines, title="", x_label="", y_label="")
    both, same, one = ((tmp_path / name).read_bytes() for name in ("both", "same", "one"))
    assert both == same
    assert both != one


@pytest.mark.parametrize(("values", "mean", "spread"), [((2.0,), 2.0, 0.0), ((1.0, 3.0), 2.0, 2**0.5)])
def test_mean_and_spread(values: tuple[float, ...], mean: float, spread: float) -> None:
    point = Point(1, values)
    assert (point.mean, point.spread) == (mean, pytest.approx(spread))
