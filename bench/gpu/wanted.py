"""What the figures should be on an H100, and whether they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple


class Wanted(NamedTuple):
    """A figure and its lower bound.

    Attributes:
        what: for people.
        stage: of the report.
        measurement: in that stage.
        figure: of that measurement.
        least: what it should be at least.
    """

    what: str
    stage: str
    measurement: str
    figure: str
    least: float


CARD = "H100"

WANTED = (
    Wanted("decode at batch 64, of the byte floor", "speed", "decode, batch 64", "of the byte floor", 0.70),
    Wanted("decode at batch 16, of the byte floor", "speed", "decode, batch 16", "of the byte floor", 0.70),
    Wanted("decode at batch 1, of the byte floor", "speed", "decode, batch 1", "of the byte floor", 0.55),
    Wanted("decode at batch 1, times transformers.generate", "speed", "decode, batch 1", "times transformers", 10.0),
    Wanted("mixed workload, times ruPrompts' way", "speed", "mixed workload", "times ruPrompts", 10.0),
    Wanted("mixed workload, times PEFT", "speed", "mixed workload", "times PEFT", 10.0),
    Wanted("a prompt is free", "speed", "prompts are free", "a prompt is free", 0.97),
    Wanted("mixed is free", "speed", "prompts are free", "mixed is free", 0.97),
    Wanted("splice forward, of a copy", "speed", "kernel: splice, forward", "of copy", 0.90),
    Wanted("splice backward, of a copy", "speed", "kernel: splice, backward", "of copy", 0.80),
    Wanted("a training step, times PEFT", "training", "training", "times PEFT", 3.0),
)


def judged(stages: Mapping[str, list[dict[str, Any]]], counts: bool) -> list[dict[str, Any]]:
    """Every wanted figure with what was measured.

    Args:
        stages: the measurements of each stage.
        counts: whether figures mean something: not at toy sizes, nor on a CPU.

    Returns:
        For each ``{"what", "wanted", "measured", "met"}``; ``measured`` is None without a measurement, ``met`` is None
        without one that counts.
    """
    rows = []
    for wanted in WANTED:
        found = next(
            (
                entry["figures"].get(wanted.figure)
                for entry in stages.get(wanted.stage, [])
                if entry["name"] == wanted.measurement
            ),
            None,
        )
        met = found >= wanted.least if counts and found is not None else None
        rows.append({"what": wanted.what, "wanted": wanted.least, "measured": found, "met": met})
    return rows
