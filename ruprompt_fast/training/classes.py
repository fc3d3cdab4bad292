"""Which class a value of a table means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, TypeAlias

from ruprompt_fast.core import Class

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_BOOLEANS = {"true": True, "false": False}

Meaning: TypeAlias = str | bool | Decimal


def find_class(value: Any, classes: Sequence[Class]) -> list[int]:
    """The classes that a value may mean; none, one, or several that cannot be told apart.

    A string is the class of that name. What is left are numbers and booleans: tables write and read them in other forms
    than people (``True`` and ``"True"`` for ``true``, ``0.0`` for ``0`` beside a missing value), so equal ones are the
    same class. A boolean is no number.

    Args:
        value: what a row holds.
        classes: the classes.
    """
    if getattr(value, "ndim", None) == 0:  # a number of numpy's, which rows of a table hold
        value = value.item()
    if isinstance(value, str):
        named = [index for index, name in enumerate(classes) if str(name) == value]
        if named:
            return named
    meaning = _meaning(value)
    if meaning is None or isinstance(meaning, str):
        return []
    meanings = [_meaning(name) for name in classes]
    return [index for index, other in enumerate(meanings) if type(other) is type(meaning) and other == meaning]


def _meaning(value: Any) -> Meaning | None:
    """A boolean, a number or a text; None for anything else."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str | int | float):
        return None
    text = str(value)
    if text.lower() in _BOOLEANS:
        return _BOOLEANS[text.lower()]
    return Decimal(text) if _NUMBER.fullmatch(text) else text
