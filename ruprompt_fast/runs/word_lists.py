"""The share of texts with a word of a list: a rough measure, such as of rudeness.

A text counts if one of its words begins as an entry of the list does, in any case, ``ё`` read as ``е``. It finds
no word that the list lacks, and neither irony nor insults without rude words; and it counts harmless words that begin
like rude ones. So compare shares of texts with each other, and trust no share by itself.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ruprompt_fast.errors import ConfigError, PromptFileError, shown
from ruprompt_fast.prompts.files.reading.regular_file import open_regular

OBSCENE = "obscene"
"""The name of the list of rude Russian words that comes with the package."""

MAX_LIST_BYTES = 2**20
"""Bytes of a list."""

USUAL_SHARE = 0.05
"""From this share of the inputs on the package's own list is used without being asked for."""

_OWN_LIST = Path(__file__).parents[1] / "tasks" / "obscene.txt"


@dataclass(frozen=True)
class WordList:
    """Beginnings of words.

    Attributes:
        name: the list's name or path.
        pattern: finds a word that begins so, in normalized text.
    """

    name: str
    pattern: re.Pattern[str]

    def flags(self, texts: Sequence[str]) -> list[float]:
        """For every text 1 if it has a word of the list, else 0."""
        return [float(self.pattern.search(_normalized(text)) is not None) for text in texts]


def read_word_list(name: str = OBSCENE) -> WordList:
    """Read a list: a beginning of words on each line; lines that begin with ``#`` are comments.

    Args:
        name: ``obscene``, or the path of a file in UTF-8.

    Raises:
        ConfigError: there is no such file, it is too large, is not UTF-8, or holds no words.
    """
    path = _OWN_LIST if name == OBSCENE else Path(name).expanduser()
    try:
        with open_regular(path, MAX_LIST_BYTES, "a list of words") as file:
            lines = file.read(0, file.size).decode("utf-8-sig").splitlines()
    except PromptFileError as error:
        raise ConfigError(f"word_list: {error} Name a file, or {OBSCENE!r}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"word_list: {path}: expected UTF-8; found something else ({error}).") from error
    words = [word for line in lines if (word := _normalized(line.strip())) and not word.startswith("#")]
    if not words:
        raise ConfigError(f"word_list: {path}: expected a word on each line; found {shown(lines[:3])}.")
    return WordList(name, re.compile(rf"\b(?:{'|'.join(map(re.escape, words))})"))


def _normalized(text: str) -> str:
    return text.lower().replace("ё", "е")
