"""After the timings, one line per candidate: its median, the middle half of its rounds, its ratios to the first."""

from __future__ import annotations

from typing import Any

import pytest


def line(name: str, bench: Any, first: Any) -> str:
    """Milliseconds, tokens per second where tokens were counted, and peak memory where that was measured.

    The ratios are of the medians and of the fastest rounds: how many times longer than the first a candidate takes. The
    peak's says how many times the memory of the first. Beside other work, the last
    figure is the share of the rate alone.
    """
    stats = bench.stats
    median, low, high = (1e3 * value for value in (stats.median, stats.q1, stats.q3))
    ratios = f"{stats.median / first.stats.median:>6.2f} {stats.min / first.stats.min:>6.2f}"
    tokens, peak = bench.extra_info.get("tokens"), bench.extra_info.get("peak_bytes")
    rate = f"  {tokens / stats.median:>9.1f} tokens/s" if tokens else ""
    memory = f"  {peak / 2**20:>8.1f} MiB {peak / first.extra_info['peak_bytes']:>6.2f}" if peak else ""
    share = bench.extra_info.get("share_of_alone")
    beside = f"  {share:>6.2f} of alone" if share else ""
    return f"  {name:<16}{median:>10.3f} ms  ({low:.3f} .. {high:.3f})  {ratios}{rate}{memory}{beside}"


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Groups appear in the order they ran in; a group's first candidate is ours, or the smallest."""
    groups: dict[str, list[Any]] = {}
    for bench in getattr(config, "_benchmarksession").benchmarks:  # noqa: B009  (private to the plugin)
        if bench.stats.rounds:
            groups.setdefault(bench.group, []).append(bench)
    terminalreporter.section("median, middle half, ratios to the first: of the medians, of the fastest rounds")
    for group, benches in groups.items():
        terminalreporter.write_line(group)
        for bench in benches:
            terminalreporter.write_line(line(bench.params["candidate"], bench, benches[0]))
