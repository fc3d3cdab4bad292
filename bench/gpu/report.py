"""The report of a check: one JSON file, made again after every stage, and one table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu.measurement import Setting
from gpu.stage_file import NOT_BEGUN, write_json
from gpu.wanted import CARD, judged

REPORT = "report.json"
LONGEST_CELL = 100


def write_report(
    setting: Setting, machine: dict[str, Any], stages: dict[str, list[dict[str, Any]]], seconds: dict[str, float]
) -> dict[str, Any]:
    """Write what is known so far.

    Args:
        setting: what is checked.
        machine: what it is checked on.
        stages: the measurements of each stage that has begun.
        seconds: what each stage took that has ended.

    Returns:
        The report.
    """
    report = {
        "machine": machine,
        "device": setting.device,
        "toy": setting.toy,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        f"wanted on an {CARD}": judged(stages, counts=setting.on_card and not setting.toy),
        "stages": stages,
    }
    write_json(setting.out / REPORT, report)
    return report


def num_failed(report: dict[str, Any]) -> int:
    """Measurements that failed."""
    return _num(report, "failed")


def _num(report: dict[str, Any], status: str) -> int:
    return sum(entry["status"] == status for entries in report["stages"].values() for entry in entries)


def print_report(report: dict[str, Any], path: Path) -> None:
    """The table: every figure, then what is wanted, then where the whole of it is."""
    _print_table("figures", ("stage", "measurement", "status", "figure", "value"), list(_figures(report)))
    wanted = [
        (
            row["what"],
            f"{row['wanted']:g}",
            _shown(row["measured"]),
            {True: "met", False: "NOT MET", None: "-"}[row["met"]],
        )
        for row in report[f"wanted on an {CARD}"]
    ]
    _print_table(f"wanted on an {CARD}", ("what", "at least", "measured", ""), wanted)
    machine = report["machine"]
    card = machine["card"]["name"] if machine["card"] else "no card: these figures say nothing"
    print(f"{card}; driver {machine['driver']}; commit {machine['commit']}")
    if machine["missing"]:
        print(f"not installed: {', '.join(machine['missing'])}")
    unfinished = _num(report, "cut off") + _num(report, NOT_BEGUN)
    if unfinished:
        print(f"{unfinished} had no time: give more with --patience")
    print(f"{num_failed(report)} failed, {sum(report['seconds'].values()):.0f} s; all of it is in {path}")


def _figures(report: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for stage, entries in report["stages"].items():
        for entry in entries:
            if stage == "machine" and not entry["error"]:
                continue  # it has a place of its own
            name, status = entry["name"], entry["status"]
            if entry["error"]:
                yield stage, name, status, "", _shown(entry["error"].strip().splitlines()[-1])
            for figure, value in entry["figures"].items():
                if not (isinstance(value, dict) and figure in ("errors", "failures")):
                    yield stage, name, status, figure, _shown(value)
                    continue
                for who, text in value.items():
                    yield stage, name, status, f"error: {who}", _shown(str(text).strip().splitlines()[-1])
            if not entry["error"] and not entry["figures"]:
                yield stage, name, status, "", ""


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    text = " ".join(text.split())
    return text if len(text) <= LONGEST_CELL else f"{text[: LONGEST_CELL - 3]}..."


def _print_table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    if find_spec("rich") is None:
        print(title)
        widths = [max(len(row[index]) for row in [columns, *rows]) for index in range(len(columns))]
        for row in [columns, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*map(Text, row))
    # Written to a file or a pipe there is no width, and a cut table would be of no use.
    console = Console()
    (console if console.is_terminal else Console(width=180)).print(table)
