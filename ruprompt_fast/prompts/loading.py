"""Finding a prompt's files, wherever they are, and reading them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ruprompt_fast.errors import PromptFileError
from ruprompt_fast.prompts.files import PROMPT_FILE_NAME, StoredPrompt, read_prompt
from ruprompt_fast.prompts.peft import PEFT_CONFIG_NAME, read_peft


def load_prompt(
    name_or_path: str | os.PathLike[str], subfolder: str | None, task_id: int | None, **hub_arguments: Any
) -> StoredPrompt:
    """Read a prompt from a folder or from the Hugging Face Hub.

    Args:
        name_or_path: a folder, or ``owner/name`` of a repository.
        subfolder: a folder inside it.
        task_id: which task of a multitask adapter.
        hub_arguments: see :func:`ruprompt_fast.prompts.hub.download_prompt`.

    Raises:
        PromptFileError: a file is missing, malformed, or does not belong to the others.
        UnsafeFileError: the rows are not plain dense numbers.
        NonFiniteRowsError: they contain NaN or infinity.
        HubError: the repository could not be read.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        folder = folder / subfolder if subfolder else folder
    elif _is_path(name_or_path):
        found = "a file" if folder.exists() else "nothing there"
        raise PromptFileError(f"{folder}: expected a folder with {PROMPT_FILE_NAME}; found {found}.")
    else:
        from ruprompt_fast.prompts.hub import download_prompt

        folder = download_prompt(str(name_or_path), subfolder=subfolder, **hub_arguments)
    if (folder / PROMPT_FILE_NAME).is_file():
        return read_prompt(folder)
    if (folder / PEFT_CONFIG_NAME).is_file():
        return read_peft(folder, task_id)
    found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "no such folder"
    raise PromptFileError(
        f"{folder}: expected {PROMPT_FILE_NAME}, or {PEFT_CONFIG_NAME} of a PEFT adapter; found {found or 'nothing'}."
    )


def _is_path(name_or_path: str | os.PathLike[str]) -> bool:
    """Whether this can only mean a path: a repository is named by one or two words with a slash between them."""
    if not isinstance(name_or_path, str):
        return True
    return (
        os.path.exists(name_or_path)
        or name_or_path.startswith((".", "~", "/"))
        or name_or_path.count("/") > 1
        or os.path.isabs(name_or_path)
        or "\\" in name_or_path
    )
