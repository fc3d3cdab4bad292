"""JSON files: one list of objects."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import TrainingDataError, shown
from ruprompt_fast.runs.data.json_lines import RepeatedKeyError, unrepeated
from ruprompt_fast.runs.data.lines import MAX_LINE_CHARS, text_lines
from ruprompt_fast.runs.data.row_format import Record, RowFormat

_SPACE = re.compile(r"[ \t\n\r]*")
_DECODER = json.JSONDecoder(object_pairs_hook=unrepeated)
_LENIENT = json.JSONDecoder()


def read_json(path: Path, format: RowFormat) -> Iterator[Record]:
    """The objects of a list, each with the line that it begins on.

    Raises:
        TrainingDataError: the file cannot be read, is no list, breaks off, or is too large to be read at once.
    """
    text = _whole_text(path, format.encoding)
    place = _next(text, 0)
    if not text.startswith("[", place):
        raise TrainingDataError(
            f"{path}: expected a list of JSON objects; found {shown(text[place : place + 40])}. Name a file with an "
            "object on each line *.jsonl."
        )
    line, counted = 1, 0
    place = _next(text, place + 1)
    while not text.startswith("]", place):
        line, counted = line + text.count("\n", counted, place), place
        record, place = _element(text, place, f"{path}:{line}")
        yield line, record
        place = _next(text, place)
        if text.startswith(",", place):
            place = _next(text, place + 1)
        elif not text.startswith("]", place):
            raise TrainingDataError(
                f"{path}:{line + text.count(chr(10), counted, place)}: expected a comma, or the end of the list; found "
                f"{shown(text[place : place + 40])}."
            )
    if text[_next(text, place + 1) :]:
        raise TrainingDataError(f"{path}: expected nothing after the list; found {shown(text[place + 1 :][:40])}.")


def _element(text: str, place: int, where: str) -> tuple[Any, int]:
    """An element of the list, or why it is no row, and where it ends."""
    try:
        try:
            record, end = _DECODER.raw_decode(text, place)
        except RepeatedKeyError as error:
            return f"is no row ({error})", _LENIENT.raw_decode(text, place)[1]
    except (ValueError, RecursionError) as error:
        raise TrainingDataError(f"{where} and what is after it is not JSON ({error}).") from error
    return (record if isinstance(record, dict) else f"must be a JSON object; found {type(record).__name__}"), end


def _next(text: str, place: int) -> int:
    """The place of the next character that is no space."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


def _whole_text(path: Path, encoding: str | None) -> str:
    pieces, size = [], 0
    for _, line in text_lines(path, encoding, newline="\n"):
        size += len(line)
        if size > MAX_LINE_CHARS:
            raise TrainingDataError(
                f"{path}: expected at most {MAX_LINE_CHARS} characters, which are read at once; found more. Write an "
                "object on each line of a .jsonl file: these are read one by one."
            )
        pieces.append(line)
    return "".join(pieces)
