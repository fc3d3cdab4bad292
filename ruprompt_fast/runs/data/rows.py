"""Rows to train and evaluate on: JSONL, JSON, CSV, TSV, text and Parquet files, and data sets of the Hugging Face Hub.

Every required column of every row is a string that is not empty; a number becomes the text that JSON writes for it.
Rows that break this are reported with the file and the line, never dropped silently.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, get_args

from ruprompt_fast.errors import MissingFieldError, SettingError, TrainingDataError, shown
from ruprompt_fast.runs.data.row_format import DEFAULT_FORMAT, RowFormat
from ruprompt_fast.runs.data.sources import records, text_column_of

OnBadRow = Literal["fail", "skip"]

SHOWN_BAD_ROWS = 3
"""How many broken rows a message describes; it counts them all."""

_REASON_CHARS = 300

# Characters of a name, and names, that are compared to find the nearest.
_COMPARED = 1000

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        line: the line of the file that the row begins on, from 1; for Parquet and hub data sets the row's number.
        reason: what is wrong with it.
    """

    line: int
    reason: str


class PlacedRow(dict[str, str]):
    """The columns of a row that knows where it is.

    Attributes:
        source: where it comes from.
        line: see :class:`BadRow`.
    """

    def __init__(self, columns: Mapping[str, str], source: str, line: int) -> None:
        super().__init__(columns)
        self.source = source
        self.line = line

    @property
    def place(self) -> str:
        """File and line, for messages."""
        return f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Rows:
    """What was read.

    Attributes:
        rows: the required columns of every usable row.
        bad: the rows that were skipped.
        source: where the rows come from, a path or the id of a data set.
    """

    rows: list[dict[str, str]]
    bad: list[BadRow]
    source: str


def load_rows(
    source: str,
    columns: Sequence[str],
    *,
    optional: Sequence[str] = (),
    split: str = "train",
    name: str | None = None,
    on_bad_row: OnBadRow = "fail",
    limit: int | None = None,
    format: RowFormat = DEFAULT_FORMAT,
) -> Rows:
    """Read rows.

    Args:
        source: a ``.jsonl`` file (a JSON object on each line), ``.json`` (a list of objects), ``.csv`` or ``.tsv``
            (with a line of column names), ``.txt`` (a text on each line) or ``.parquet`` file, but for the last also
            compressed as ``.gz``, ``.bz2``, ``.xz`` or ``.zst``; a folder that ``datasets`` can read, or the id of a
            data set of the hub. The lines of a text file are the column that is asked for, or of several ``text``.
        columns: the columns that every row must have; others are left out.
        optional: further columns, which a row may lack or have empty; rows have those that are neither.
        split: the split of a folder or a hub data set.
        name: the configuration of a hub data set.
        on_bad_row: ``fail`` raises an error that describes the first broken rows and counts all; ``skip`` leaves them
            out and logs the same.
        limit: read as many usable rows; None reads all.
        format: how files are written.

    Raises:
        TrainingDataError: there is no such source, it cannot be read, it holds no usable rows, or, with
            ``on_bad_row="fail"``, a broken one.
        MissingFieldError: no row has a certain column.
        SettingError: ``on_bad_row`` or ``limit`` has an impossible value.
        MissingDependencyError: Parquet files, folders and hub data sets need the extra ``train``.
    """
    if on_bad_row not in get_args(OnBadRow):
        raise SettingError(f"on_bad_row must be one of {', '.join(get_args(OnBadRow))}; found {shown(on_bad_row)}.")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise SettingError(f"limit must be at least 1, or None for all rows; found {shown(limit)}.")
    rows: list[PlacedRow] = []
    bad: list[BadRow] = []
    found: dict[str, None] = {}  # the columns of all rows, in order
    for line, record in records(source, split, name, format, text_column_of([*columns, *optional])):
        if not isinstance(record, str):
            found.update(dict.fromkeys(record))
            record = checked_row(record, columns, optional)
        if isinstance(record, str):
            bad.append(BadRow(line, record))
            continue
        rows.append(PlacedRow(record, source, line))
        if len(rows) == limit:
            break
    if found:
        _check_columns([*columns, *optional], found, source)
    report_bad_rows(source, len(rows), bad, on_bad_row)
    return Rows([*rows], bad, source)


def scalar_text(value: object) -> str | None:
    """The text of a string, a number or a bool, as JSON writes it; None for anything else, and for NaN."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    try:
        return json.dumps(value) if isinstance(value, bool | int | float) else None
    except ValueError:  # an integer of more digits than Python writes
        return None


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name that is nearest, or nothing."""
    near = difflib.get_close_matches(name[:_COMPARED], list(islice(known, _COMPARED)), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def checked_row(
    record: Mapping[str, Any], columns: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, str] | str:
    """The columns of a row, see :func:`load_rows`, or why it is broken."""
    row: dict[str, str] = {}
    given = [column for column in optional if record.get(column) is not None and not _is_blank(record[column])]
    for column in dict.fromkeys([*columns, *given]):
        value = record.get(column)
        text = scalar_text(value)
        if value is None:
            return f"has no value in the column {column!r}"
        if text is None:
            return f"must have a string in the column {column!r}; found {type(value).__name__}"
        if not text.strip():
            return f"has an empty value in the column {column!r}"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"has text in the column {column!r} that is not UTF-8"
        row[column] = text
    return row


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _check_columns(columns: Sequence[str], found: Collection[str], source: str) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        names = list(islice(found, _COMPARED))
        raise MissingFieldError(
            f"{source}: expected the columns {list(columns)}; found {shown(names, 500)}. There is no {missing[0]!r}."
            f"{nearest(missing[0], names)}{_delimiter_advice(names)} Map a field to another column with task.columns."
        )


def _delimiter_advice(names: Sequence[str]) -> str:
    seen = next((mark for mark in ";\t|," if mark in names[0]), None) if len(names) == 1 else None
    return "" if seen is None else f" The columns seem to be separated by {seen!r}: set delimiter."


def report_bad_rows(source: str, num_rows: int, bad: Sequence[BadRow], on_bad_row: OnBadRow) -> None:
    """Raise or log what is wrong with the rows.

    Args:
        source: where they come from.
        num_rows: how many can be used.
        bad: the others.
        on_bad_row: see :func:`load_rows`.

    Raises:
        TrainingDataError: there are no rows to use, or with ``fail`` a broken one.
    """
    if bad:
        described = "; ".join(f"{source}:{row.line} {_short(row.reason)}" for row in bad[:SHOWN_BAD_ROWS])
        counts = f"{len(bad)} of {num_rows + len(bad)} rows"
        if on_bad_row == "fail":
            raise TrainingDataError(
                f"{source}: {counts} cannot be used: {described}{_rest(bad)}. "
                "Mend them, or leave them out with on_bad_row=skip."
            )
        _logger.warning("%s: skipped %s: %s%s", source, counts, described, _rest(bad))
    if not num_rows:
        state = "only rows that cannot be used" if bad else "none"
        raise TrainingDataError(f"{source}: expected rows; found {state}. Check that it is the right file.")


def _short(reason: str) -> str:
    return reason if len(reason) <= _REASON_CHARS else f"{reason[:_REASON_CHARS]}..."


def _rest(bad: Sequence[BadRow]) -> str:
    return f"; and {len(bad) - SHOWN_BAD_ROWS} more" if len(bad) > SHOWN_BAD_ROWS else ""
