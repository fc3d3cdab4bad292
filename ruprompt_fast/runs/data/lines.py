"""Lines of text files, whatever is in them: their encoding found, their length bounded."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from pathlib import Path

from ruprompt_fast.errors import RupromptError, TrainingDataError
from ruprompt_fast.runs.data.compressed import DECODING_ERRORS, open_content

MAX_LINE_CHARS = 2**26
"""Characters of a line at most: more is no row of text, and might not fit into memory."""

# The marks of UTF-16 are the beginning of those of UTF-32.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_UTF_8 = "utf-8-sig"


def text_lines(path: Path, encoding: str | None, newline: str) -> Iterator[tuple[int, str]]:
    """The lines of a file with their numbers, from 1, and their ends.

    Bytes that are not UTF-8 come out as lone surrogates, see :func:`undecoded_byte`, so that they break their own line
    only.

    Args:
        path: the file, compressed or not, or a pipe.
        encoding: its encoding; None for UTF-8, or what a mark at its beginning says.
        newline: as for ``open``: a line feed alone ends lines, or with an empty string every kind of line end.

    Raises:
        TrainingDataError: it cannot be read, is in another encoding, or has a line that is too long.
    """
    number = 0
    try:
        with open_content(path) as binary:
            name = encoding or _encoding_of(binary.peek(4)[:4], path)
            errors = "surrogateescape" if name == _UTF_8 else "strict"
            with io.TextIOWrapper(binary, encoding=name, errors=errors, newline=newline) as file:
                while line := file.readline(MAX_LINE_CHARS + 1):
                    number += 1
                    if len(line) > MAX_LINE_CHARS:
                        raise TrainingDataError(
                            f"{path}:{number} is longer than {MAX_LINE_CHARS} characters, so not a line of rows. Check "
                            "that it is the right file, and that its lines end."
                        )
                    yield number, line
    except UnicodeError as error:
        raise TrainingDataError(
            f"{path}:{number + 1} or one of the next lines is not {encoding or 'what the mark at the beginning says'} "
            f"({error}). Name the encoding with encoding=NAME, or convert the file to UTF-8."
        ) from error
    except RupromptError:
        raise
    except (OSError, *DECODING_ERRORS) as error:
        raise TrainingDataError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def undecoded_byte(line: str) -> int | None:
    """The place, from 1, of the first byte of a line that is not UTF-8; None if all are."""
    try:
        line.encode()
    except UnicodeEncodeError as error:
        return len(line[: error.start].encode()) + 1
    return None


def _encoding_of(head: bytes, path: Path) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if b"\0" in head:
        raise TrainingDataError(
            f"{path}: expected text in UTF-8; found a null byte at byte {head.index(0) + 1}, as in UTF-16 without a "
            "mark. Name the encoding, with encoding=utf-16-le for instance, or convert the file."
        )
    return _UTF_8
