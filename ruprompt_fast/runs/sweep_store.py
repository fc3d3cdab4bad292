"""Results of a sweep on disk: one line of JSON per finished cell, so that a killed sweep goes on where it stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import RawIOBase
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from ruprompt_fast.errors import CheckpointError, shown
from ruprompt_fast.file_writer import append_all, naming_write_errors

AxisValue = str | int | float | None
"""One value of an axis of the grid; None where the cell does not have that axis."""


@dataclass(frozen=True)
class CellResult:
    """What training one cell gave.

    Attributes:
        digest: of the cell's effective configuration, data and model; 16 hexadecimal digits.
        axes: the cell's place in the grid.
        template: the prompt's template with the cell's length.
        status: ``diverged`` where training stopped with a :class:`~ruprompt_fast.errors.DivergenceError`.
        metrics: held-out metrics; empty for a diverged cell.
        seconds: what training and evaluating took.
        message: why the cell diverged.
    """

    digest: str
    axes: Mapping[str, AxisValue]
    template: str
    status: Literal["finished", "diverged"]
    metrics: Mapping[str, float]
    seconds: float
    message: str | None = None


class ResultStore:
    """A file of results that only grows; :func:`open_store` makes one.

    Attributes:
        results: all results of the file by digest, those of earlier configurations included.
    """

    def __init__(self, file: RawIOBase, path: Path) -> None:
        self._file = file
        self._path = path
        with naming_write_errors(path):
            self.results = {result.digest: result for result in _read(file, path)}
        self._num_bytes = os.fstat(file.fileno()).st_size

    def append(self, result: CellResult) -> None:
        """Write one line; it is on the disk when this returns.

        Raises:
            FileWriteError: the disk is full, say; the lines before are whole.
        """
        line = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False).encode() + b"\n"
        with naming_write_errors(self._path):
            append_all(self._file.fileno(), line, self._num_bytes, sync=True)
        self._num_bytes += len(line)
        self.results[result.digest] = result


@contextmanager
def open_store(path: Path) -> Iterator[ResultStore]:
    """Open a file of results, made if it is not there; its folder is the caller's own.

    A last line that was being written when the process died is cut; a whole one that lacks its end gets it.

    Raises:
        CheckpointError: a line is not a result.
        FileWriteError: the file cannot be written to.
    """
    with naming_write_errors(path):
        file = path.open("a+b", buffering=0)
    with file:
        yield ResultStore(file, path)


def _read(file: RawIOBase, path: Path) -> Iterator[CellResult]:
    """The results in a file, which is set to go on after them."""
    file.seek(0)
    content = file.readall()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        if _result(content[complete:]) is None:
            file.truncate(complete)
            content = content[:complete]
        else:
            append_all(file.fileno(), b"\n", len(content))
    for number, line in enumerate(content.splitlines(), start=1):
        result = _result(line)
        if result is None:
            raise CheckpointError(
                f"{path}, line {number}: expected a result with {', '.join(sorted(_TYPES))}; found {shown(line)}. "
                "Delete the line, and its cell is trained again."
            )
        yield result


def _result(line: bytes) -> CellResult | None:
    """The result that a line holds, or None if it holds something else."""
    try:
        stored = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(stored, dict) or stored.keys() != _TYPES.keys():
        return None
    if not all(isinstance(stored[name], kind) for name, kind in _TYPES.items()):
        return None
    numbers = all(isinstance(value, int | float) for value in stored["metrics"].values())
    return CellResult(**stored) if numbers and stored["status"] in _STATES else None


_STATES = ("finished", "diverged")
_TYPES: dict[str, Any] = {
    "digest": str,
    "axes": dict,
    "template": str,
    "status": str,
    "metrics": dict,
    "seconds": int | float,
    "message": str | NoneType,
}
