"""Plain strings: what counts as text, and which field a string fills."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

_USUAL = "text"


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: it has no lone surrogates."""
    if text.isascii():
        return True  # takes no look at the characters
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def text_field(fields: Collection[str]) -> str:
    """The field that a plain string fills: a prompt's only one, and ``text`` where there are several or none."""
    names = set(fields)
    return names.pop() if len(names) == 1 else _USUAL


def add_text(fields: dict[str, Any], text: str | None, names: Collection[str]) -> None:
    """Put a plain string, if there is one, among the other fields of a template that has these names."""
    if text is not None:
        name = text_field(names)
        fields[_USUAL if name in fields else name] = text
