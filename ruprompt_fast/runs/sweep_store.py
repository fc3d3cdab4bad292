"""Results of a sweep on disk: one line of JSON per finished cell, so that a killed sweep goes on where it stopped."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Literal

from ruprompt_fast.errors import CheckpointError, OutputExistsError

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

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file = file
        self.results = {result.digest: result for result in _read(file, path)}

    def append(self, result: CellResult) -> None:
        """Write one line; it is on the disk when this returns."""
        line = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False) + "\n"
        self._file.write(line.encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self.results[result.digest] = result


@contextmanager
def open_store(path: Path) -> Iterator[ResultStore]:
    """Open a file of results, made if it is not there, for one process at a time.

    A last line without its end was being written when the process died: it is cut.

    Raises:
        OutputExistsError: another process has the file open.
        CheckpointError: a line is not a result.
    """
    with path.open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputExistsError(
                f"{path}: expected no other sweep; found one that writes there now. Wait for it or name another output."
            ) from None
        yield ResultStore(file, path)


def _read(file: IO[bytes], path: Path) -> Iterator[CellResult]:
    file.seek(0)
    content = file.read()
    complete = content.rfind(b"\n") + 1
    if complete < len(content):
        file.truncate(complete)
    names = {field.name for field in fields(CellResult)}
    for number, line in enumerate(content[:complete].splitlines(), start=1):
        try:
            stored = json.loads(line)
        except ValueError:
            stored = None
        if not isinstance(stored, dict) or set(stored) != names:
            raise CheckpointError(
                f"{path}, line {number}: expected a result with {', '.join(sorted(names))}; found something else. "
                "Delete the line, and its cell is trained again."
            )
        yield CellResult(**stored)
