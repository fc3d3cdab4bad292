"""Text files with a text on each line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ruprompt_fast.runs.data.lines import text_lines, undecoded_byte
from ruprompt_fast.runs.data.row_format import Record, RowFormat

TEXT_COLUMN = "text"
"""The column of a text file's lines, unless exactly one column is asked for."""


def read_text(path: Path, format: RowFormat, column: str = TEXT_COLUMN) -> Iterator[Record]:
    """Every line as a row of one column, without its end; empty lines are passed over."""
    for number, line in text_lines(path, format.encoding, newline="\n"):
        text = line.rstrip("\r\n")
        if text.strip():
            place = undecoded_byte(text)
            yield number, {column: text} if place is None else f"is not UTF-8 (byte {place} of the line)"
