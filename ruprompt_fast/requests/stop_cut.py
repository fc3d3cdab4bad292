"""Texts without the stop string that ends them."""

from __future__ import annotations

from collections.abc import Sequence


class StopCut:
    """Takes a text piece by piece, and returns the text before the first stop string.

    Only what may be the beginning of a stop string is held back.

    Args:
        strings: the stop strings; without any, pieces pass as they are.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = strings
        self._held = ""
        self._is_over = False

    def push(self, piece: str) -> str:
        """Take a piece; returns the new text that is certain."""
        if self._is_over or not self._strings:
            return "" if self._is_over else piece
        text = self._held + piece
        starts = [start for string in self._strings if (start := text.find(string)) >= 0]
        self._is_over = bool(starts)
        end = min(starts) if starts else len(text) - self._num_begun(text)
        self._held = "" if starts else text[end:]
        return text[:end]

    def flush(self) -> str:
        """What was held back; the text ends here."""
        held, self._held = self._held, ""
        return held

    def _num_begun(self, text: str) -> int:
        """How many characters at the end of a text may begin a stop string."""
        longest = min(len(text), max(map(len, self._strings)) - 1)
        lengths = range(longest, 0, -1)
        return next((n for n in lengths if any(string.startswith(text[-n:]) for string in self._strings)), 0)


def without_stop(text: str, strings: Sequence[str]) -> str:
    """A whole text up to the first of these strings."""
    cut = StopCut(strings)
    return cut.push(text) + cut.flush()
