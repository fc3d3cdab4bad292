"""The kinds of attack, and how the time is divided among them."""

from __future__ import annotations

from collections.abc import Callable

from attack import command_line, data_files, interrupts, kills, prompt_files, settings, threads
from attack.tally import Tally

KINDS: dict[str, Callable[[float, int], Tally]] = {
    "settings": settings.attack,
    "threads": threads.attack,
    "interrupts": interrupts.attack,
    "prompt files": prompt_files.attack,
    "data files": data_files.attack,
    "command line": command_line.attack,
    "kills": kills.attack,
}

_WEIGHTS = {"settings": 2.0, "kills": 2.0}  # what needs longer to reach far


def share(name: str, seconds: float) -> float:
    """The part of all the seconds that one kind gets."""
    return seconds * _WEIGHTS.get(name, 1.0) / sum(_WEIGHTS.get(kind, 1.0) for kind in KINDS)
