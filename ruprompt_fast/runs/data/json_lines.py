"""JSONL files: a JSON object on each line."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruprompt_fast.runs.data.lines import text_lines, undecoded_byte
from ruprompt_fast.runs.data.row_format import DEFAULT_FORMAT, Record, RowFormat


def read_jsonl(path: Path, format: RowFormat = DEFAULT_FORMAT) -> Iterator[Record]:
    """JSON objects, one a line; empty lines are passed over."""
    for number, line in text_lines(path, format.encoding, newline="\n"):
        if line.strip():
            yield number, _parse_object(line)


def _parse_object(line: str) -> Mapping[str, Any] | str:
    place = undecoded_byte(line)
    if place is not None:
        return f"is not UTF-8 (byte {place} of the line)"
    try:
        record = json.loads(line, object_pairs_hook=unrepeated)
    except (ValueError, RecursionError) as error:
        return f"is not JSON ({error})"
    return record if isinstance(record, dict) else f"must be a JSON object; found {type(record).__name__}"


class RepeatedKeyError(ValueError):
    """An object has a key twice, of which one value would be lost."""


def unrepeated(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of these keys and values.

    Raises:
        RepeatedKeyError: a key appears twice.
    """
    made = dict(pairs)
    if len(made) < len(pairs):
        raise RepeatedKeyError("a key appears twice in an object")
    return made
