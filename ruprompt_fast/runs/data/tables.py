"""CSV and TSV files. No row is lost: a quotation mark that swallows lines costs its own line alone."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from pathlib import Path

from ruprompt_fast.errors import TrainingDataError, shown
from ruprompt_fast.runs.data.compressed import data_suffix
from ruprompt_fast.runs.data.lines import text_lines
from ruprompt_fast.runs.data.row_format import Record, RowFormat

MAX_QUOTED_LINES = 1000
"""Lines that a quoted value may run over: the mark before a longer one is taken for a stray one."""

SWALLOWED_ROWS = 8
"""A quoted value of at least so many whole lines that all have the delimiters of a row is taken for swallowed rows."""

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_IS_QUOTED = {".csv": True, ".tsv": False}
_MARK = '"'

_logger = logging.getLogger(__name__)

Line = tuple[int, str]


class _Lines:
    """Lines that can be given back."""

    def __init__(self, lines: Iterator[Line]) -> None:
        self._lines = lines
        self._returned: deque[Line] = deque()

    def take(self) -> Line | None:
        return self._returned.popleft() if self._returned else next(self._lines, None)

    def give_back(self, lines: Sequence[Line]) -> None:
        self._returned.extendleft(reversed(lines))


def read_table(path: Path, format: RowFormat) -> Iterator[Record]:
    """The rows of a CSV or TSV file by the names in its first line; empty lines are passed over.

    Raises:
        TrainingDataError: the file cannot be read, or its first line does not name the columns.
    """
    suffix = data_suffix(path)
    delimiter = format.delimiter or _DELIMITERS[suffix]
    is_quoted = _IS_QUOTED[suffix] if format.quoting is None else format.quoting == "standard"
    lines = _Lines(text_lines(path, format.encoding, newline=""))
    header: list[str] | None = None
    num_marked = 0
    while (first := lines.take()) is not None:
        number, text = first
        if not text.strip("\r\n"):
            continue
        row = _row(first, lines, delimiter, is_quoted, header)
        if header is None:
            header = _checked_header(row, path, number)
        elif isinstance(row, str):
            yield number, row
        else:
            num_marked += not is_quoted and any(_is_in_marks(value) for value in row)
            yield number, dict(zip(header, row, strict=True))
    if num_marked and format.quoting is None:
        _logger.warning(
            "%s: %d rows have values in quotation marks, which stay; quoting=standard takes them off.", path, num_marked
        )


def _row(first: Line, lines: _Lines, delimiter: str, is_quoted: bool, header: Sequence[str] | None) -> list[str] | str:
    """The values of a row, or why it is none; only the first line is used up then."""
    if "\0" in first[1]:
        return "holds a null byte: the file is damaged, or in another encoding"
    if not is_quoted or _MARK not in first[1]:
        values: list[str] | str = first[1].rstrip("\r\n").split(delimiter)
    else:
        used: list[Line] = []
        values = _quoted_values(first[1], lines, used, delimiter)
        if len(used) > 1 and not isinstance(values, str) and header is not None:
            values = _not_swallowed(values, used, delimiter, header)
        if isinstance(values, str) or (header is not None and len(values) != len(header)):
            lines.give_back(used)
    if isinstance(values, str) or header is None or len(values) == len(header):
        return values
    return f"must have {len(header)} values, one for each column; found {len(values)}"


def _quoted_values(text: str, lines: _Lines, used: list[Line], delimiter: str) -> list[str] | str:
    """The values of a row some of which are in quotation marks; ``used`` gets the further lines that it takes."""
    values: list[str] = []
    content, end = _without_end(text)
    place = 0
    while True:
        if not content.startswith(_MARK, place):
            stop = content.find(delimiter, place)
            values.append(content[place:] if stop < 0 else content[place:stop])
            if stop < 0:
                return values
            place = stop + 1
            continue
        pieces: list[str] = []
        place += 1
        while True:
            stop = content.find(_MARK, place)
            if stop < 0:
                pieces.append(content[place:] + end)
                more = lines.take() if len(used) < MAX_QUOTED_LINES else None
                if more is None:
                    return _unclosed(len(values), len(used))
                used.append(more)
                content, end = _without_end(more[1])
                place = 0
            elif content.startswith(_MARK, stop + 1):
                pieces.append(content[place : stop + 1])
                place = stop + 2
            else:
                pieces.append(content[place:stop])
                place = stop + 1
                break
        values.append("".join(pieces))
        if place == len(content):
            return values
        if content[place] != delimiter:
            where = f", {len(used)} lines below" if used else ""
            return f"has text after the quotation mark that closes value {len(values)}{where}; double marks in a value"
        place += 1


def _unclosed(index: int, num_lines: int) -> str:
    if num_lines < MAX_QUOTED_LINES:
        return f"opens a quotation mark before value {index + 1} that is never closed"
    return f"opens a quotation mark before value {index + 1} that is not closed within {MAX_QUOTED_LINES} lines"


def _not_swallowed(values: list[str], used: Sequence[Line], delimiter: str, header: Sequence[str]) -> list[str] | str:
    """The values, unless the lines within a quoted one look like rows of their own."""
    inner = [text for _, text in used[:-1]]
    can_tell = len(header) > 1 and len(inner) >= SWALLOWED_ROWS
    # A mark that was doubled was written by somebody who meant the value to be quoted.
    if can_tell and all(_MARK not in text and text.count(delimiter) == len(header) - 1 for text in inner):
        return f"has a quoted value of {len(inner)} lines that look like rows; a quotation mark is one too many"
    return values


def _checked_header(row: list[str] | str, path: Path, number: int) -> list[str]:
    if isinstance(row, str):
        raise TrainingDataError(f"{path}:{number}: expected the names of the columns; found a line that {row}.")
    repeated = sorted(name for name, count in Counter(row).items() if count > 1)
    if repeated:
        raise TrainingDataError(
            f"{path}:{number}: expected a name for each column; found {shown(repeated)} twice. Rename one."
        )
    return row


def _without_end(line: str) -> tuple[str, str]:
    content = line.rstrip("\r\n")
    return content, line[len(content) :]


def _is_in_marks(value: str) -> bool:
    return len(value) > 1 and value.startswith(_MARK) and value.endswith(_MARK)
