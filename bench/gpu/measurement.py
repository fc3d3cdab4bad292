"""What a stage is made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[2]

Figures: TypeAlias = dict[str, Any]
"""What was measured, by name: numbers, texts, or lists of them."""

Record: TypeAlias = Callable[..., None]
"""Writes figures, given as a dict or by name, to the report at once; what a cut-off measurement recorded stays."""


@dataclass(frozen=True)
class Setting:
    """What is checked.

    Attributes:
        device: ``cuda`` or ``cpu``. On the CPU the CUDA backend runs on its rehearsal device.
        toy: whether sizes are so small that the figures say nothing.
        out: the folder of the report.
        patience: factor on all time limits.
    """

    device: str
    toy: bool
    out: Path
    patience: float = 1.0

    @property
    def on_card(self) -> bool:
        """Whether there is a real CUDA device."""
        return self.device == "cuda"


@dataclass(frozen=True)
class Measurement:
    """One part of a stage; those that share something expensive keep it in ``functools.cache``.

    Attributes:
        name: appears in the report.
        run: measures; what it raises fails this measurement and no other.
        limit_s: seconds after which the process that runs it is ended, and a new one goes on with the next.
    """

    name: str
    run: Callable[[Record], None]
    limit_s: float = 30.0


class NotHere(Exception):  # noqa: N818 (no error: the reason why something is not measured)
    """Something cannot be measured on this machine; its text says why."""


def need(*packages: str) -> None:
    """Raises :class:`NotHere` unless all of these packages are installed."""
    absent = [name for name in packages if find_spec(name) is None]
    if absent:
        raise NotHere(f"not installed: {', '.join(absent)}")
