"""An ensemble's folder: an index, ``ensemble.json``, and a folder with a prompt's files for every member."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

from ruprompt_fast.errors import FileWriteError, PromptFileError, PromptFolderError, shown
from ruprompt_fast.file_writer import checked_path, make_folder, naming_write_errors, unfinished_folder, write_json
from ruprompt_fast.prompts.files.paths import local_path
from ruprompt_fast.prompts.files.prompt_folder import (
    PROMPT_FILE_NAME,
    PROMPT_PROVIDER_FILE_NAME,
    PROMPT_SAFETENSORS_FILE_NAME,
)
from ruprompt_fast.prompts.files.reading.json_object import read_json
from ruprompt_fast.prompts.limits import MAX_ENSEMBLE_BYTES, MAX_MEMBERS
from ruprompt_fast.prompts.prompt import Prompt

ENSEMBLE_FILE_NAME = "ensemble.json"
"""The index of an ensemble's folder; it names the members' folders."""


_OWN_FOLDER = re.compile(r"members(-[1-9][0-9]{0,8})?")
_OWN_MEMBER = re.compile(r"0|[1-9][0-9]{0,8}")
_OWN_FILES = {PROMPT_FILE_NAME, PROMPT_PROVIDER_FILE_NAME, PROMPT_SAFETENSORS_FILE_NAME}
_PLAIN_NAME = re.compile(r"(?!\.\.?$)[^/\\:\0]{1,255}")


def is_ensemble_folder(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an ensemble rather than one prompt."""
    return os.path.isfile(local_path(folder) / ENSEMBLE_FILE_NAME)


def write_members(save_directory: str | os.PathLike[str], members: Sequence[Prompt]) -> None:
    """Write the members to new folders, then the index that names them, then remove what the old index named.

    The index changes in one step, so a reader finds the old ensemble or the new one, whole. Of the old one only folders
    are removed that hold what this function writes and nothing else.

    Raises:
        NotInitializedError: a member is not initialized; nothing is written.
        PromptFolderError: ``save_directory`` is a file.
        FileWriteError: it cannot be written to; the ensemble that is there stays whole.
    """
    folder = Path(checked_path(save_directory))
    for member in members:
        member.as_dict()
    if len(members) > MAX_MEMBERS:
        raise FileWriteError(f"{folder}: expected at most {MAX_MEMBERS} members; found {len(members)}.")
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise PromptFolderError(f"{folder}: expected a folder to save the ensemble in; found a file.")
    make_folder(folder)
    replaced = _replaced_folders(folder)
    with naming_write_errors(folder):
        new = _write_to_new_folder(folder, members)
    try:
        write_json(folder / ENSEMBLE_FILE_NAME, {"members": [f"{new}/{index}" for index in range(len(members))]})
    except BaseException:
        _remove_members(folder / new)
        raise
    for old in replaced:
        _remove_members(old)


def member_folders(folder: Path) -> list[Path]:
    """The members' folders, as the index names them.

    Raises:
        PromptFileError: the index is missing or malformed, names something twice, points outside the folder or through
            a link, or names more than ``MAX_MEMBERS`` members or ``MAX_ENSEMBLE_BYTES``.
    """
    path = folder / ENSEMBLE_FILE_NAME
    names = read_json(path).get("members")
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise PromptFileError(f'{path}: expected {{"members": [folder, ...]}}; found {shown(names)}. Save it again.')
    if len(names) > MAX_MEMBERS or len(set(names)) < len(names):
        raise PromptFileError(
            f"{path}: expected at most {MAX_MEMBERS} different members; found {len(names)}, {len(set(names))} of them "
            "different. Save it again."
        )
    folders = [_member_folder(folder, name, path) for name in names]
    size = sum(_rows_bytes(member) for member in folders)
    if size > MAX_ENSEMBLE_BYTES:
        raise PromptFileError(
            f"{path}: expected members of at most {MAX_ENSEMBLE_BYTES} bytes together; found {size}. Load them one "
            "by one."
        )
    return folders


def _member_folder(folder: Path, name: str, path: Path) -> Path:
    parts = name.split("/")
    if len(parts) != 2 or not all(map(_PLAIN_NAME.fullmatch, parts)):
        raise PromptFileError(f"{path}: expected folders such as 'members/0'; found {shown(name)}. Save it again.")
    member = folder / parts[0] / parts[1]
    if os.path.islink(member.parent) or os.path.islink(member):
        raise PromptFileError(f"{path}: expected folders; found that {shown(name)} is a link. Copy what it points to.")
    return member


def _rows_bytes(member: Path) -> int:
    """How large the files are that a member's rows may be in; reading it says what is wrong with it, if anything."""
    files = [member / name for name in (PROMPT_SAFETENSORS_FILE_NAME, PROMPT_PROVIDER_FILE_NAME)]
    return sum(os.path.getsize(file) for file in files if os.path.isfile(file))


def _write_to_new_folder(folder: Path, members: Sequence[Prompt]) -> str:
    """Write the members under a name that nothing has yet, which is returned."""
    with unfinished_folder(folder) as temporary:
        for index, member in enumerate(members):
            member.save_pretrained(temporary / str(index))
        new = _unused_name(folder)
        temporary.rename(folder / new)
    return new


def _replaced_folders(folder: Path) -> list[Path]:
    """What holds the members of the ensemble that is there already; nothing if its index cannot be read."""
    try:
        members = member_folders(folder)
    except PromptFileError:
        return []
    return list(dict.fromkeys(member.parent for member in members))


def _remove_members(folder: Path) -> None:
    """Remove a folder of members; one that holds anything that :func:`write_members` does not write stays as it is."""
    try:
        if not _OWN_FOLDER.fullmatch(folder.name) or not _is_real(folder, stat.S_ISDIR):
            return
        members = sorted(folder.iterdir())
        if not all(_OWN_MEMBER.fullmatch(member.name) and _is_real(member, stat.S_ISDIR) for member in members):
            return
        files = [file for member in members for file in member.iterdir()]
        if not all(file.name in _OWN_FILES and _is_real(file, stat.S_ISREG) for file in files):
            return
        for file in files:
            file.unlink()
        # rmdir() removes empty folders only: a file that somebody adds in this moment is not lost.
        for member in [*members, folder]:
            member.rmdir()
    except OSError:
        return  # the new ensemble is complete; what is left of the old one takes space and does nothing else


def _is_real(path: Path, is_kind: Callable[[int], bool]) -> bool:
    """Whether something is of a kind by itself, not through a link."""
    return is_kind(path.lstat().st_mode)


def _unused_name(folder: Path) -> str:
    """A name for the folder of the members that nothing has."""
    number = 1
    while os.path.lexists(folder / (name := "members" if number == 1 else f"members-{number}")):
        number += 1
    return name
