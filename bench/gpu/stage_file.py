"""A stage's part of the report: a JSON file that is whole at every moment."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

RUNNING = "running"


class StageFile:
    """The measurements of one stage, in the order in which they began.

    Each is ``{"name", "status", "seconds", "figures", "error"}``; the status is ``running``, ``passed``, ``failed`` or
    ``not here``. The process that measures writes the file after every figure, and the one that watches it reads it,
    and closes what a process that ended has left open.

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

    def begin(self, name: str, limit_s: float) -> dict[str, Any]:
        """A new entry that runs."""
        entry: dict[str, Any] = {
            "name": name,
            "status": RUNNING,
            "began": time.time(),
            "limit_s": limit_s,
            "seconds": 0.0,
            "figures": {},
            "error": "",
        }
        self.measurements.append(entry)
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

    def known(self, name: str) -> bool:
        """Whether a measurement has begun."""
        return any(entry["name"] == name for entry in self.measurements)

    def write(self) -> None:
        """Replace the file, complete or not at all."""
        write_json(self.path, self.measurements)


def write_json(path: Path, value: Any) -> None:
    """Replace a file, complete or not at all; what JSON does not know is written as text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", encoding="utf-8")
    os.replace(temporary, path)
