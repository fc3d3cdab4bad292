"""What counts as text."""

from __future__ import annotations


def is_text(text: str) -> bool:
    """Whether a string can be written as UTF-8: it has no lone surrogates."""
    if text.isascii():
        return True  # known without a look at the characters
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
