"""A file of results, one JSON object a line, that an interrupted run can go on with."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ruprompt_fast.errors import CheckpointError, OutputExistsError
from ruprompt_fast.prompts.tensor_files import write_text

_READ_BYTES = 1 << 20

# Of the description: the number of lines of a run that came to its end.
_NUM_LINES = "num_lines"


@dataclass
class ResultFile:
    """The results, and beside them ``NAME.run.json``, which says what they are results of.

    The file only ever grows. What a run that was killed left behind is cut back to its last whole chunk of lines, so
    the lines after it come from the same batches as in a run that was never interrupted.

    Args:
        path: the file.
        description: what the results depend on; plain JSON.
        chunk: lines that are written together.
    """

    path: Path
    description: Mapping[str, Any]
    chunk: int

    @property
    def description_path(self) -> Path:
        """The file that says what the results are results of."""
        return self.path.with_name(f"{self.path.name}.run.json")

    def check(self) -> None:
        """Refuse to go on with the results of something else.

        Raises:
            OutputExistsError: the file is there, and nothing says what it holds.
            CheckpointError: it holds results of something else; the message says what differs.
        """
        stored = self._stored()
        if stored is None:
            return
        for name, value in json.loads(json.dumps(self.description)).items():
            if stored.get(name) != value:
                raise CheckpointError(
                    f"{self.path}: the run that is here has {name}={stored.get(name)!r}; this one has {value!r}. Go on "
                    f"with the same {name}, or name another output."
                )

    def num_complete(self) -> int | None:
        """The number of lines, if the run that wrote them came to its end; else None."""
        return (self._stored() or {}).get(_NUM_LINES)

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Open the file to write its next lines, alone; on success it is complete then.

        What fails before the first lines leaves no file.

        Raises:
            OutputExistsError: another process is writing to it; and what :meth:`check` raises.
            CheckpointError: what :meth:`check` raises.
        """
        self.check()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self._stored() is None:
            self._describe(None)
        with self.path.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise OutputExistsError(f"{self.path}: another process is writing to it; wait for it.") from error
            writer = Writer(file, _cut(self.path, self.chunk))
            try:
                yield writer
            except BaseException:
                if not writer.num_lines:
                    self.path.unlink()
                    self.description_path.unlink()
                raise
            os.fsync(file.fileno())
            self._describe(writer.num_lines)

    def _describe(self, num_lines: int | None) -> None:
        content = {**self.description, _NUM_LINES: num_lines}
        write_text(self.description_path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")

    def _stored(self) -> dict[str, Any] | None:
        """The description beside the file; None if there is no file, or nothing in it to go on with.

        Raises:
            OutputExistsError: there is only the file.
            CheckpointError: the description cannot be read.
        """
        if not self.path.exists() or not self.path.stat().st_size:
            return None
        try:
            stored = json.loads(self.description_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise OutputExistsError(
                f"{self.path}: expected no such file; found one without {self.description_path.name}, so not from an "
                "interrupted run. Name another output."
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.description_path}: expected JSON ({error}); name another output.") from error
        if not isinstance(stored, dict):
            raise CheckpointError(f"{self.description_path}: expected a JSON object; name another output.")
        return stored


@dataclass
class Writer:
    """Appends lines to an open file.

    Attributes:
        num_lines: lines that it holds.
    """

    _file: BinaryIO
    num_lines: int

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, and hand them to the operating system before anything else happens."""
        self._file.write("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
        self._file.flush()
        self.num_lines += len(rows)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _cut(path: Path, chunk: int) -> int:
    """Cut a file back to a multiple of ``chunk`` whole lines; how many these are."""
    num_lines = num_bytes = kept_lines = kept_bytes = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            num_lines, num_bytes = num_lines + 1, num_bytes + len(line)
            if num_lines % chunk == 0:
                kept_lines, kept_bytes = num_lines, num_bytes
    os.truncate(path, kept_bytes)
    return kept_lines
