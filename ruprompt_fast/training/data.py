"""Rows to train and evaluate on: JSONL, CSV, TSV and Parquet files, and data sets of the Hugging Face Hub.

Every required column of every row is a string that is not empty; a number becomes the text that JSON writes for it.
Rows that break this are reported with the file and the line, never dropped unseen.
"""

from __future__ import annotations

import csv
import difflib
import json
import logging
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

from ruprompt_fast.errors import MissingDependencyError, MissingFieldError, SettingError, TrainingDataError

OnBadRow = Literal["fail", "skip"]

SHOWN_BAD_ROWS = 3
"""How many broken rows a message describes; it counts them all."""

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

_logger = logging.getLogger(__name__)

Record = tuple[int, "Mapping[str, Any] | str"]
"""The number of a row, and the row as read or why it cannot be read."""


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used.

    Attributes:
        line: the line of the file that the row begins on, from 1; for Parquet and hub data sets the row's number.
        reason: what is wrong with it.
    """

    line: int
    reason: str


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
) -> Rows:
    """Read rows.

    Args:
        source: a ``.jsonl``, ``.csv``, ``.tsv`` or ``.parquet`` file, a folder that ``datasets`` can read, or the id of
            a data set of the hub. CSV and TSV files have a line of column names; quotes are RFC 4180's.
        columns: the columns that every row must have; others are left out.
        optional: further columns, which a row may lack or have empty; rows have those that are neither.
        split: the split of a folder or a hub data set.
        name: the configuration of a hub data set.
        on_bad_row: ``fail`` raises an error that describes the first broken rows and counts all; ``skip`` leaves them
            out and logs the same.
        limit: read as many usable rows; None reads all.

    Raises:
        TrainingDataError: there is no such source, it cannot be read, it holds no usable rows, or, with
            ``on_bad_row="fail"``, a broken one.
        MissingFieldError: no row has a certain column.
        SettingError: ``on_bad_row`` or ``limit`` has an impossible value.
        MissingDependencyError: Parquet files, folders and hub data sets need the extra ``train``.
    """
    if on_bad_row not in get_args(OnBadRow):
        raise SettingError(f"on_bad_row must be one of {', '.join(get_args(OnBadRow))}; found {on_bad_row!r}.")
    if limit is not None and limit < 1:
        raise SettingError(f"limit must be at least 1, or None for all rows; found {limit}.")
    rows: list[dict[str, str]] = []
    bad: list[BadRow] = []
    found: dict[str, None] = {}  # the columns of all rows, in order
    for line, record in records(source, split, name):
        if not isinstance(record, str):
            found.update(dict.fromkeys(record))
            record = checked_row(record, columns, optional)
        if isinstance(record, str):
            bad.append(BadRow(line, record))
            continue
        rows.append(record)
        if len(rows) == limit:
            break
    if found:
        _check_columns([*columns, *optional], list(found), source)
    report_bad_rows(source, len(rows), bad, on_bad_row)
    return Rows(rows, bad, source)


def scalar_text(value: object) -> str | None:
    """The text of a string, a number or a truth value, as JSON writes it; None for anything else, and for NaN."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return json.dumps(value) if isinstance(value, bool | int | float) else None


def nearest(name: str, known: Iterable[str]) -> str:
    """`` Did you mean 'x'?`` for the known name that is nearest, or nothing."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def checked_row(
    record: Mapping[str, Any], columns: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, str] | str:
    """The columns of a row, see :func:`load_rows`, or why it is broken."""
    row: dict[str, str] = {}
    given = [column for column in optional if record.get(column) is not None and str(record[column]).strip()]
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


def _check_columns(columns: Sequence[str], found: Sequence[str], source: str) -> None:
    missing = [column for column in columns if column not in found]
    if missing:
        raise MissingFieldError(
            f"{source}: expected the columns {list(columns)}; found {list(found)}. There is no {missing[0]!r}."
            f"{nearest(missing[0], found)} Map a field to another column with task.columns."
        )


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
        shown = "; ".join(f"{source}:{row.line} {row.reason}" for row in bad[:SHOWN_BAD_ROWS])
        counts = f"{len(bad)} of {num_rows + len(bad)} rows"
        if on_bad_row == "fail":
            raise TrainingDataError(
                f"{source}: {counts} cannot be used: {shown}{_rest(bad)}. "
                "Mend them, or leave them out with on_bad_row=skip."
            )
        _logger.warning("%s: skipped %s: %s%s", source, counts, shown, _rest(bad))
    if not num_rows:
        state = "only rows that cannot be used" if bad else "none"
        raise TrainingDataError(f"{source}: expected rows; found {state}. Check that it is the right file.")


def _rest(bad: Sequence[BadRow]) -> str:
    return f"; and {len(bad) - SHOWN_BAD_ROWS} more" if len(bad) > SHOWN_BAD_ROWS else ""


def records(source: str, split: str = "train", name: str | None = None) -> Iterator[Record]:
    """The rows of a source as they are, one by one, see :func:`load_rows`.

    Raises:
        TrainingDataError: there is no such source, or it cannot be read.
    """
    path = Path(source).expanduser()
    readers: dict[str, Callable[[Path], Iterator[Record]]] = {
        ".jsonl": read_jsonl,
        ".csv": partial(_read_table, delimiter=","),
        ".tsv": partial(_read_table, delimiter="\t"),
        ".parquet": _read_parquet,
    }
    if path.is_dir():
        return _read_dataset(source, str(path), name=name, split=split, streaming=True)
    if path.suffix in readers:
        if not path.is_file():
            raise TrainingDataError(f"{source}: expected a file; found none. Paths start from the working directory.")
        return readers[path.suffix](path)
    if path.exists():
        raise TrainingDataError(
            f"{source}: expected a file named {', '.join(f'*{suffix}' for suffix in readers)}, a folder or the id of a "
            f"data set; found the suffix {path.suffix!r}. Convert the file, or rename it."
        )
    if _HUB_ID.fullmatch(source) is None:
        raise TrainingDataError(f"{source}: expected a file, a folder or the id of a data set; found none of these.")
    return _read_dataset(source, source, name=name, split=split)


def read_jsonl(path: Path) -> Iterator[Record]:
    """JSON objects, one a line; empty lines are passed over."""
    with path.open("rb") as file:
        for line, content in enumerate(file, start=1):
            if content.strip():
                yield line, _parse_object(content.removeprefix(b"\xef\xbb\xbf") if line == 1 else content)


def _parse_object(content: bytes) -> Mapping[str, Any] | str:
    try:
        record = json.loads(content.decode())
    except UnicodeDecodeError as error:
        return f"is not UTF-8 (byte {error.start + 1} of the line)"
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    return record if isinstance(record, dict) else f"must be a JSON object; found {type(record).__name__}"


def _read_table(path: Path, delimiter: str) -> Iterator[Record]:
    # Bytes that are not UTF-8 become lone surrogates, which the check of the values finds, with the line.
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        header = _read_header(reader, path)
        while True:
            line = reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield line, f"is not {path.suffix[1:].upper()} ({error})"
                continue
            if len(values) == len(header):
                yield line, dict(zip(header, values, strict=True))
            elif values:
                yield line, f"must have {len(header)} values, one for each column; found {len(values)}"


def _read_header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = next(reader, [])
    except csv.Error as error:
        raise TrainingDataError(
            f"{path}:1: expected the names of the columns; found something else ({error})."
        ) from error
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise TrainingDataError(f"{path}:1: expected a name for each column; found {repeated} twice. Rename one.")
    return header


def _read_parquet(path: Path) -> Iterator[Record]:
    # Streaming reads the file itself; otherwise datasets would first write a copy to its cache.
    return _read_dataset(str(path), "parquet", data_files=str(path), split="train", streaming=True)


def _read_dataset(source: str, builder: str, **arguments: Any) -> Iterator[Record]:
    """Rows of what ``datasets.load_dataset(builder, **arguments)`` finds."""
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {source} needs the package datasets; install it with pip install 'ruprompt-fast[train]'."
        ) from error
    # RuntimeError: a data set that is a script, which datasets does not run any more.
    errors = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)
    try:
        dataset = datasets.load_dataset(builder, **arguments)
        first = next(iter(dataset), None)  # opens the files
    except errors as error:
        raise TrainingDataError(
            f"{source}: expected a file, a folder or the id of a data set, with the split {arguments['split']!r}; it "
            f"cannot be read: {error}"
        ) from error
    if first is None:
        return iter(())
    return enumerate(dataset, start=1)
