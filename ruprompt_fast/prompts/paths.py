"""Paths that a caller gives: checked before anything is asked of the file system."""

from __future__ import annotations

import os
from pathlib import Path

from ruprompt_fast.errors import FileWriteError, PromptFileError, shown


def local_path(name_or_path: object) -> Path:
    """A path that a caller gave, with the home folder in place of ``~``.

    Raises:
        PromptFileError: it is no path.
    """
    if not isinstance(name_or_path, str | os.PathLike) or not isinstance(os.fspath(name_or_path), str):
        raise PromptFileError(
            f"expected a folder, or owner/name of a repository; found {shown(name_or_path)} of type "
            f"{type(name_or_path).__name__}."
        )
    if problem := _problem(os.fspath(name_or_path)):
        raise PromptFileError(f"{shown(os.fspath(name_or_path))}: {problem}.")
    return Path(os.path.expanduser(name_or_path))


def checked_path(path: object) -> str:
    """A path that a caller gave, as a string.

    Raises:
        FileWriteError: it is something else.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise FileWriteError(f"expected a path; found {shown(path)} of type {type(path).__name__}.")
    if problem := _problem(text):
        raise FileWriteError(f"{shown(text)}: {problem}.")
    return text


def _problem(path: str) -> str | None:
    """What keeps a string from being a path on any file system; None if nothing does."""
    if "\0" in path:
        return "a path cannot hold a null byte"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return "a path cannot hold half a character, a lone surrogate"
    return None
