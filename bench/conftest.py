"""After the timings, one line per candidate: its median, the middle half of its rounds, its ratio to ours."""

from __future__ import annotations

from typing import Any

import pytest


def line(name: str, stats: Any, ours: Any) -> str:
    """Milliseconds; a ratio above one says how many times longer than ours a candidate takes."""
    median, low, high = (1e3 * value for value in (stats.median, stats.q1, stats.q3))
    return f"  {name:<14}{median:>9.3f} ms  ({low:.3f} .. {high:.3f})  {stats.median / ours.median:>6.2f}"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Groups stand in the order they ran in; a group's first candidate is ours."""
    groups: dict[str, list[Any]] = {}
    for bench in getattr(config, "_benchmarksession").benchmarks:  # noqa: B009  (private to the plugin)
        if bench.stats.rounds:
            groups.setdefault(bench.group, []).append(bench)
    terminalreporter.section("median, middle half, ratio to ours")
    for group, benches in groups.items():
        terminalreporter.write_line(group)
        for bench in benches:
            terminalreporter.write_line(line(bench.params["candidate"], bench.stats, benches[0].stats))
