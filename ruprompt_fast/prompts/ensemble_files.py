"""An ensemble's folder: an index, ``ensemble.json``, and a folder with a prompt's files for every member."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from ruprompt_fast.errors import PromptFileError, PromptFolderError
from ruprompt_fast.prompts.files import read_json
from ruprompt_fast.prompts.prompt import Prompt
from ruprompt_fast.prompts.tensor_files import write_text

ENSEMBLE_FILE_NAME = "ensemble.json"
"""The index of an ensemble's folder; it names the members' folders."""


def is_ensemble_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an ensemble rather than one prompt."""
    return (Path(folder).expanduser() / ENSEMBLE_FILE_NAME).is_file()


def write_members(folder: Path, members: Sequence[Prompt]) -> None:
    """Write the members to new folders, then the index that names them, then remove what the old index named.

    The index changes in one step, so a reader finds the old ensemble or the new one, whole.

    Raises:
        NotInitializedError: a member is not initialized; nothing is written.
        PromptFolderError: ``folder`` is a file.
    """
    for member in members:
        member.as_dict()
    if folder.is_file():
        raise PromptFolderError(f"{folder}: expected a folder to save the ensemble in; found a file.")
    folder.mkdir(parents=True, exist_ok=True)
    replaced = _replaced_folders(folder)
    new = _unused_name(folder)
    temporary = folder / f".{new}.{secrets.token_hex(8)}"
    try:
        for index, member in enumerate(members):
            member.save_pretrained(temporary / str(index))
        temporary.rename(folder / new)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    text = json.dumps({"members": [f"{new}/{index}" for index in range(len(members))]}, indent=2) + "\n"
    write_text(folder / ENSEMBLE_FILE_NAME, text)
    for old in replaced:
        shutil.rmtree(old, ignore_errors=True)


def member_folders(folder: Path) -> list[Path]:
    """The members' folders, as the index names them.

    Raises:
        PromptFileError: the index is missing or malformed, or points outside the folder.
    """
    path = folder / ENSEMBLE_FILE_NAME
    names = read_json(path).get("members")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PromptFileError(f'{path}: expected {{"members": [folder, ...]}}; found {names!r}. Save it again.')
    for name in names:
        parts = PurePosixPath(name).parts
        # Saving anew removes the folder above the members, which must not be the ensemble's own or lie elsewhere.
        if len(parts) != 2 or ".." in parts or "/" in parts:
            raise PromptFileError(f"{path}: expected folders such as 'members/0'; found {name!r}. Save it again.")
    return [folder / name for name in names]


def _replaced_folders(folder: Path) -> set[Path]:
    """What holds the members of the ensemble that is there already; nothing if its index cannot be read."""
    try:
        return {member.parent for member in member_folders(folder)}
    except PromptFileError:
        return set()


def _unused_name(folder: Path) -> str:
    """A name for the folder of the members that nothing has."""
    number = 1
    while (folder / (name := "members" if number == 1 else f"members-{number}")).exists():
        number += 1
    return name
