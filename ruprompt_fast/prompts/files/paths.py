"""Paths that a caller gives: checked before anything is asked of the file system."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ruprompt_fast.errors import PromptFileError, shown
from ruprompt_fast.file_writer import path_problem

_DRIVE = re.compile("[A-Za-z]:")


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
    if problem := path_problem(os.fspath(name_or_path)):
        raise PromptFileError(f"{shown(os.fspath(name_or_path))}: {problem}.")
    return Path(os.path.expanduser(name_or_path))


def is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this can only mean a path: a repository is named by one or two words with a slash between them.

    A name whose first word is a folder here is a path with a slip in its rest.
    """
    if not isinstance(name_or_path, str):
        return True
    first, slash, _ = name_or_path.partition("/")
    return (
        name_or_path.startswith((".", "~", "/"))
        or name_or_path.endswith("/")
        or name_or_path.count("/") > 1
        or "\\" in name_or_path
        or _DRIVE.match(name_or_path) is not None
        or os.path.exists(name_or_path)
        or (bool(slash) and os.path.isdir(first))
    )
