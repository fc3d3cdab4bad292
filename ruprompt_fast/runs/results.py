"""A file of results, one JSON object a line, that an interrupted run can continue."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import CheckpointError, OutputExistsError, shown
from ruprompt_fast.file_writer import append_all, is_stream, naming_write_errors, write_json
from ruprompt_fast.training.ownership import owning_file

# Of the description: the number of lines of a run that came to its end.
_NUM_LINES = "num_lines"


@dataclass
class ResultFile:
    """The results, and beside them ``NAME.run.json``, which says what they are results of.

    The file only ever grows. What a killed run has written is cut back to its last whole chunk of lines, so
    the lines after it come from the same batches as in a run that was never interrupted.

    A pipe or a device is written to and nothing else: it has no description, and is never replaced, cut or removed.

    Args:
        path: the file.
        description: what the results depend on; plain JSON.
        chunk: lines that are written together.
    """

    path: Path
    description: Mapping[str, Any]
    chunk: int

    @property
    def is_stream(self) -> bool:
        """Whether it is a pipe or a device."""
        return is_stream(self.path)

    @property
    def description_path(self) -> Path:
        """The file that says what the results are results of."""
        return self.path.with_name(f"{self.path.name}.run.json")

    def owned(self) -> AbstractContextManager[None]:
        """Own the file, from before the first check to after the last write.

        Raises:
            OutputInUseError: another run writes to it; the message names it.
            FileWriteError: its folder cannot be written to.
        """
        return nullcontext() if self.is_stream else owning_file(self.path)

    def check(self) -> None:
        """Refuse to continue the results of something else.

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
                    f"{self.path}: the run that is here has {name}={shown(stored.get(name))}; this one has "
                    f"{shown(value)}. Go on with the same {name}, or name another output."
                )

    def num_complete(self) -> int | None:
        """The number of lines, if the run that wrote them came to its end; else None.

        Raises:
            CheckpointError: the file has another number of lines than that run wrote.
        """
        num_lines = (self._stored() or {}).get(_NUM_LINES)
        if num_lines is None:
            return None
        found, _ = _whole_lines(self.path, 1)
        if found != num_lines:
            raise CheckpointError(
                f"{self.path}: expected the {shown(num_lines)} lines of the finished run that "
                f"{self.description_path.name} describes; found {found}. The file was changed since; name another "
                "output."
            )
        return found

    @contextmanager
    def writing(self) -> Iterator[Writer]:
        """Open the file, which is :meth:`owned`, to write its next lines; on success it is complete then.

        What fails before the first lines leaves no file.

        Raises:
            OutputExistsError, CheckpointError: what :meth:`check` raises.
            FileWriteError: the file cannot be made or written; lines that were written stay.
        """
        if self.is_stream:
            with naming_write_errors(self.path):
                descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND)
            try:
                yield Writer(descriptor, self.path, None, 0)
            finally:
                os.close(descriptor)
            return
        self.check()
        is_new = not self.path.exists()
        if self._stored() is None:
            self._describe(None)
        with naming_write_errors(self.path):
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            with naming_write_errors(self.path):
                num_lines, num_bytes = _whole_lines(self.path, self.chunk)
                os.ftruncate(descriptor, num_bytes)
            writer = Writer(descriptor, self.path, num_bytes, num_lines)
            try:
                yield writer
            except BaseException:
                if not writer.num_lines:
                    self.description_path.unlink(missing_ok=True)
                    if is_new:
                        self.path.unlink(missing_ok=True)
                raise
            with naming_write_errors(self.path):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._describe(writer.num_lines)

    def _describe(self, num_lines: int | None) -> None:
        content = {**self.description, _NUM_LINES: num_lines}
        write_json(self.description_path, content)

    def _stored(self) -> dict[str, Any] | None:
        """The description beside the file; None if there is no file, or nothing in it to continue.

        Raises:
            OutputExistsError: there is only the file, or a description that is something else.
            CheckpointError: the description cannot be read.
        """
        if self.is_stream:
            return None
        is_empty = not self.path.exists() or not self.path.stat().st_size
        try:
            stored = json.loads(self.description_path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            if is_empty:
                return None
            raise OutputExistsError(
                f"{self.path}: expected no such file; found one without {self.description_path.name}, so not from an "
                "interrupted run. Name another output."
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{self.description_path}: expected JSON ({error}); name another output.") from error
        if not isinstance(stored, dict) or _NUM_LINES not in stored:
            raise CheckpointError(
                f"{self.description_path}: expected the description of a run; found something else. Name another "
                "output."
            )
        return None if is_empty else stored


@dataclass
class Writer:
    """Appends lines to an open file or stream.

    Attributes:
        num_lines: lines that it holds.
    """

    _descriptor: int
    _path: Path
    _num_bytes: int | None
    num_lines: int

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows, and hand them to the operating system before anything else happens.

        Raises:
            FileWriteError: the disk is full, say.
        """
        content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
        with naming_write_errors(self._path):
            append_all(self._descriptor, content, self._num_bytes)
        self.num_lines += len(rows)
        if self._num_bytes is not None:
            self._num_bytes += len(content)


def _whole_lines(path: Path, chunk: int) -> tuple[int, int]:
    """The greatest multiple of ``chunk`` whole lines that a file begins with, and their bytes."""
    num_lines = num_bytes = kept_lines = kept_bytes = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            num_lines, num_bytes = num_lines + 1, num_bytes + len(line)
            if num_lines % chunk == 0:
                kept_lines, kept_bytes = num_lines, num_bytes
    return kept_lines, kept_bytes
