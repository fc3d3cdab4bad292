"""JSON that may come from anybody: no more than it needs, every key once, finite numbers and real text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ruprompt_fast.errors import PromptFileError, shown
from ruprompt_fast.prompts.files.reading.regular_file import open_regular
from ruprompt_fast.prompts.format.texts import is_text
from ruprompt_fast.prompts.limits import MAX_INTEGER_DIGITS, MAX_JSON_BRACKETS, MAX_JSON_BYTES, MAX_JSON_DEPTH

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        PromptFileError: the file is missing or too large, is not JSON, or holds something else.
    """
    with open_regular(path, MAX_JSON_BYTES, "a JSON file") as file:
        data = file.read(0, file.size)
    return parse_object(data, path)


def parse_object(data: bytes, path: Path) -> dict[str, Any]:
    """The object in some bytes of a JSON file.

    Args:
        data: the bytes; the caller bounds their number.
        path: the file, for messages.

    Raises:
        PromptFileError: they are not JSON, hold something else than an object, or a value that no prompt needs: a key
            twice, nesting beyond ``MAX_JSON_DEPTH``, a number that is infinite or beyond 64 bits, half a character.
    """
    try:
        num_brackets = data.count(b"[") + data.count(b"{")
        if num_brackets > MAX_JSON_BRACKETS:
            raise ValueError(f"it has {num_brackets} brackets, where {MAX_JSON_BRACKETS} are read")
        content = json.loads(
            data.decode("utf-8"),
            object_pairs_hook=_object,
            parse_int=_integer,
            parse_float=_number,
            parse_constant=_refuse_constant,
        )
        if not isinstance(content, dict):
            raise PromptFileError(f"{path}: expected a JSON object; found {type(content).__name__}.")
        _check_values(content, has_surrogates=_SURROGATE.search(data) is not None)
    except (ValueError, RecursionError) as error:
        if isinstance(error, PromptFileError):
            raise
        problem = "it nests too deep" if isinstance(error, RecursionError) else shown_reason(error)
        raise PromptFileError(f"{path}: expected JSON; found something else ({problem}). Download it again.") from error
    return content


def shown_reason(error: Exception) -> str:
    """The first line of an error's message, shortened."""
    lines = str(error).splitlines()
    return shown(lines[0] if lines else type(error).__name__)[1:-1]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        raise ValueError("an object has a key twice")
    return made


def _integer(digits: str) -> int:
    if len(digits) > MAX_INTEGER_DIGITS + 1:
        raise ValueError(f"an integer has {len(digits)} digits")
    return int(digits)


def _number(digits: str) -> float:
    if not math.isfinite(number := float(digits)):
        raise ValueError("a number is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _check_values(content: dict[str, Any], has_surrogates: bool) -> None:
    """Check what the parser has no hook for.

    Raises:
        ValueError: the value nests too deep, or a text holds half a character.
    """
    waiting: list[tuple[Any, int]] = [(content, 1)]
    while waiting:
        value, depth = waiting.pop()
        if depth > MAX_JSON_DEPTH:
            raise ValueError(f"it has more than {MAX_JSON_DEPTH} levels")
        for item in _items(value, has_surrogates):
            if isinstance(item, dict | list):
                waiting.append((item, depth + 1))
            elif has_surrogates and isinstance(item, str) and not is_text(item):
                raise ValueError("a text holds half a character, a lone surrogate")


def _items(value: dict[str, Any] | list[Any], with_keys: bool) -> Iterator[Any]:
    if isinstance(value, list):
        yield from value
        return
    if with_keys:
        yield from value
    yield from value.values()
