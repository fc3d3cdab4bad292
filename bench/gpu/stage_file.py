"""A stage's part of the report: a JSON file that is whole at every moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NOT_BEGUN = "not begun"
RUNNING = "running"


class StageFile:
    """The measurements of one stage, in the order in which they began.

    Each is ``{"name", "status", "seconds", "figures", "error"}``. The status is ``not begun``, ``running``, ``passed``,
    ``failed``, ``not here``, or ``cut off`` when the stage's time was over. The process that measures writes the file
    after every figure, and the one that watches it reads it, and closes what a process that ended has left open.

    Args:
        path: the file.

    Attributes:
        path: the file.
        log: what the processes print goes there.
        measurements: the entries.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.log = path.with_suffix(".log")
        self.measurements: list[dict[str, Any]] = []
        self._read_at = 0
        self.reload()

    def reload(self) -> bool:
        """Read what another process has written; returns whether there was something new."""
        written_at = self.path.stat().st_mtime_ns if self.path.exists() else 0
        if written_at == self._read_at:
            return False
        self._read_at = written_at
        self.measurements = json.loads(self.path.read_text(encoding="utf-8"))
        return True

    def log_tail(self, lines: int = 30) -> str:
        """The last lines that the processes have printed."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def plan(self, names: Sequence[str]) -> None:
        """Entries for measurements that are to begin, unless they are there."""
        known = {entry["name"] for entry in self.measurements}
        self.measurements += [_entry(name) for name in names if name not in known]
        self.write()

    def begin(self, name: str, limit_s: float) -> dict[str, Any]:
        """The entry of a measurement, which runs from now on."""
        entry = next((entry for entry in self.measurements if entry["name"] == name), None)
        if entry is None:
            entry = _entry(name)
            self.measurements.append(entry)
        entry.update(status=RUNNING, began=time.time(), limit_s=limit_s)
        self.write()
        return entry

    def end(self, entry: dict[str, Any], status: str, error: str = "") -> None:
        """Close an entry."""
        entry.update(status=status, error=error, seconds=round(time.time() - entry["began"], 3))
        self.write()

    @property
    def running(self) -> dict[str, Any] | None:
        """The entry that runs, or None."""
        return next((entry for entry in self.measurements if entry["status"] == RUNNING), None)

    @property
    def begun(self) -> set[str]:
        """The names of the measurements that have begun."""
        return {entry["name"] for entry in self.measurements if entry["status"] != NOT_BEGUN}

    def write(self) -> None:
        """Replace the file, complete or not at all."""
        write_json(self.path, self.measurements)


def _entry(name: str) -> dict[str, Any]:
    return {"name": name, "status": NOT_BEGUN, "seconds": 0.0, "figures": {}, "error": ""}


def write_json(path: Path, value: Any) -> None:
    """Replace a file, complete or not at all; what JSON does not know is written as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
