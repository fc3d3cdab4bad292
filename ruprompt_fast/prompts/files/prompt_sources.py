"""Finding a prompt's files, wherever they are, and reading them."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import PromptFileError, SettingError, shown
from ruprompt_fast.prompts.files.paths import is_path, local_path
from ruprompt_fast.prompts.files.peft_folder import PEFT_CONFIG_NAME, read_peft
from ruprompt_fast.prompts.files.prompt_folder import PROMPT_FILE_NAME, StoredPrompt, read_prompt
from ruprompt_fast.prompts.files.reading.regular_file import reason
from ruprompt_fast.prompts.limits import MAX_NAMES_SHOWN


def load_prompt(
    name_or_path: str | os.PathLike[str], subfolder: str | None, task_id: int | None, **hub_arguments: Any
) -> StoredPrompt:
    """Read a prompt from a folder or from the Hugging Face Hub.

    Args:
        name_or_path: a folder, or ``owner/name`` of a repository.
        subfolder: a folder inside it.
        task_id: which task of a multitask adapter.
        hub_arguments: see :func:`ruprompt_fast.prompts.files.hub.download_prompt`.

    Raises:
        PromptFileError: a file is missing, malformed, or does not belong to the others.
        UnsafeFileError: the rows are not plain dense numbers.
        NonFiniteRowsError: they contain NaN or infinity.
        HubError: the repository could not be read.
        SettingError: ``task_id`` is no number.
    """
    if task_id is not None and type(task_id) is not int:
        raise SettingError(f"expected task_id to be a whole number or None; found {shown(task_id)}.")
    folder = find_folder(name_or_path, subfolder, **hub_arguments)
    if os.path.lexists(folder / PROMPT_FILE_NAME):
        if task_id not in (None, 0):
            raise PromptFileError(
                f"{folder}: expected a multitask adapter of PEFT for task {task_id}; found {PROMPT_FILE_NAME}."
            )
        return read_prompt(folder)
    if os.path.lexists(folder / PEFT_CONFIG_NAME):
        return read_peft(folder, task_id)
    raise PromptFileError(
        f"{folder}: expected {PROMPT_FILE_NAME}, or {PEFT_CONFIG_NAME} of a PEFT adapter; found {_names_in(folder)}."
    )


def find_folder(name_or_path: str | os.PathLike[str], subfolder: str | None = None, **hub_arguments: Any) -> Path:
    """The folder of a prompt or an ensemble, on this machine; one of the hub is downloaded.

    Args:
        name_or_path: a folder, or ``owner/name`` of a repository.
        subfolder: a folder inside it.
        hub_arguments: see :func:`ruprompt_fast.prompts.files.hub.download_prompt`.

    Raises:
        PromptFileError: this is no folder and no repository's name.
        HubError: the repository could not be read.
    """
    path = local_path(name_or_path)
    if subfolder is not None and not isinstance(subfolder, str):
        raise PromptFileError(f"expected subfolder to be a string; found {shown(subfolder)}.")
    if os.path.isdir(path):
        return path / subfolder if subfolder else path
    if is_path(name_or_path):
        raise PromptFileError(f"{path}: expected a folder with {PROMPT_FILE_NAME}; found {_what_is_there(path)}.")
    from ruprompt_fast.prompts.files.hub import download_prompt

    return download_prompt(str(name_or_path), subfolder=subfolder, **hub_arguments)


def _what_is_there(path: Path) -> str:
    try:
        path.stat()
    except FileNotFoundError:
        return "nothing there"
    except (OSError, ValueError) as error:
        return reason(error)
    return "a file"


def _names_in(folder: Path) -> str:
    """What a folder holds, in words."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in islice(entries, MAX_NAMES_SHOWN + 1)]
    except (OSError, ValueError) as error:
        return "no such folder" if isinstance(error, FileNotFoundError) else reason(error)
    more = ", ..." if len(names) > MAX_NAMES_SHOWN else ""
    return ", ".join(sorted(names[:MAX_NAMES_SHOWN])) + more or "nothing"
