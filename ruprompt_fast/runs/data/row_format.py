"""How rows are written in a file."""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ruprompt_fast.errors import SettingError, shown

Quoting = Literal["standard", "none"]

Record = tuple[int, "Mapping[str, Any] | str"]
"""The number of a row, and the row as read or why it cannot be read."""


@dataclass(frozen=True)
class RowFormat:
    """How a file of rows is to be read; None means what is usual for its kind.

    Args:
        delimiter: what is between the values of a CSV or TSV file; a comma or a tab.
        quoting: of CSV and TSV files: ``standard`` has values in quotation marks, with delimiters, line ends and
            doubled quotation marks in them (RFC 4180; usual for CSV); with ``none`` every line is a row and a quotation
            mark is text (usual for TSV).
        encoding: of text files; UTF-8, or UTF-16 or UTF-32 where the file begins with their mark.

    Raises:
        SettingError: a value that cannot work.
    """

    delimiter: str | None = None
    quoting: Quoting | None = None
    encoding: str | None = None

    def __post_init__(self) -> None:
        if self.delimiter is not None and (
            not isinstance(self.delimiter, str) or len(self.delimiter) != 1 or self.delimiter in '"\r\n\0'
        ):
            raise SettingError(
                "delimiter must be one character, neither a quotation mark nor a line end; found "
                f"{shown(self.delimiter)}."
            )
        if self.quoting is not None and self.quoting not in get_args(Quoting):
            raise SettingError(f"quoting must be one of {', '.join(get_args(Quoting))}; found {shown(self.quoting)}.")
        if self.encoding is not None and not _is_encoding(self.encoding):
            raise SettingError(
                f"encoding must be the name of one of Python's text encodings, such as cp1251; found "
                f"{shown(self.encoding)}."
            )


DEFAULT_FORMAT = RowFormat()
"""What is usual for each kind of file."""


def _is_encoding(name: Any) -> bool:
    try:
        codecs.lookup(name)
        return isinstance("".encode(name), bytes)
    except (LookupError, TypeError, ValueError):
        return False
