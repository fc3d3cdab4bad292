"""The rows of a file or pipe, read one by one, and which of them can be used."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ruprompt_fast.errors import ContextLengthError, TrainingDataError
from ruprompt_fast.file_writer import file_digest, is_stream
from ruprompt_fast.runs.data.json_lines import read_jsonl
from ruprompt_fast.runs.data.row_format import Record, RowFormat
from ruprompt_fast.runs.data.rows import BadRow, OnBadRow, checked_row, report_bad_rows
from ruprompt_fast.runs.data.sources import FILE_NAMES, is_row_file, records, source_path, text_column_of


@dataclass(frozen=True)
class SourceRow:
    """A row of the input.

    Attributes:
        line: where it begins.
        record: all of it.
        columns: those that were asked for, as texts.
    """

    line: int
    record: Mapping[str, Any]
    columns: dict[str, str]


class RowSource:
    """The input's rows, read one by one.

    Args:
        source: a file of rows, see :func:`~ruprompt_fast.runs.data.rows.load_rows`, or a pipe of JSON lines.
        columns: the columns to read.
        new_fields: fields that a row must not have, because the output gets them.
        on_bad_row: whether a row that cannot be used is an error or is left out.
        has_all: whether a row must have all of the columns.
        format: how the rows are written.

    Attributes:
        bad: the rows that were left out so far.

    Raises:
        TrainingDataError: there is no such file.
    """

    def __init__(
        self,
        source: str,
        columns: Sequence[str],
        new_fields: Sequence[str],
        on_bad_row: OnBadRow,
        *,
        has_all: bool,
        format: RowFormat,
    ) -> None:
        self.source = source
        self.on_bad_row = on_bad_row
        self.bad: list[BadRow] = []
        self._required = columns if has_all else []
        self._optional = [] if has_all else columns
        self._new_fields = new_fields
        self._format = format
        self._path = source_path(source)
        # A pipe can be read only once, so an interrupted run cannot be continued.
        self._is_pipe = is_stream(self._path)
        self._text_column = text_column_of(columns)
        if not self._is_pipe and not (self._path.is_file() and is_row_file(self._path)):
            found = f"the suffix {self._path.suffix!r}" if self._path.is_file() else "no such file"
            raise TrainingDataError(f"{source}: expected {FILE_NAMES}; found {found}.")

    def digest(self) -> str:
        """What tells this input from others; that of a pipe is never the same.

        Raises:
            TrainingDataError: the file cannot be read.
        """
        if self._is_pipe:
            return secrets.token_hex(32)
        try:
            return file_digest(self._path)
        except OSError as error:
            raise TrainingDataError(f"{self.source}: cannot be read ({error.strerror or error}).") from error

    def check(self) -> int | None:
        """Look at all rows before anything is spent on the first; how many seem usable, or None for a pipe.

        Raises:
            TrainingDataError: no row is usable, or one is broken and no row may be.
        """
        if self._is_pipe:
            return None
        bad: list[BadRow] = []
        num_usable = 0
        for line, record in self._records():
            row = self._row(line, record)
            num_usable += isinstance(row, SourceRow)
            if isinstance(row, str):
                bad.append(BadRow(line, row))
        if not num_usable or self.on_bad_row == "fail":
            report_bad_rows(self.source, num_usable, bad, "fail")
        return num_usable

    def rows(self, check_fits: Callable[[dict[str, str]], None]) -> Iterator[SourceRow]:
        """The usable rows, in order; the others are added to :attr:`bad`.

        Args:
            check_fits: raises ``ContextLengthError`` for the columns of a row that is too long.

        Raises:
            TrainingDataError, ContextLengthError: a row is broken or too long, and no row may be.
        """
        for line, record in self._records():
            row = self._row(line, record)
            error_type: type[TrainingDataError | ContextLengthError] = TrainingDataError
            if isinstance(row, SourceRow):
                try:
                    check_fits(row.columns)
                except ContextLengthError as error:
                    row, error_type = str(error).removeprefix("input 0 "), ContextLengthError
            if isinstance(row, SourceRow):
                yield row
            elif self.on_bad_row == "fail":
                raise error_type(f"{self.source}:{line} {row} Mend it, or leave such rows out with on_bad_row=skip.")
            else:
                self.bad.append(BadRow(line, row))

    def _records(self) -> Iterator[Record]:
        if self._is_pipe:
            return read_jsonl(self._path, self._format)
        return records(str(self._path), format=self._format, text_column=self._text_column)

    def _row(self, line: int, record: Mapping[str, Any] | str) -> SourceRow | str:
        """The row, or why it cannot be used."""
        columns = record if isinstance(record, str) else checked_row(record, self._required, self._optional)
        if isinstance(columns, str) or isinstance(record, str):
            return str(columns)
        taken = [name for name in self._new_fields if name in record]
        if taken:
            return f"has the field {taken[0]!r} already, which the output gets; choose a field_prefix"
        try:
            json.dumps(record, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            return f"cannot be written again ({error})"
        return SourceRow(line, record, columns)
