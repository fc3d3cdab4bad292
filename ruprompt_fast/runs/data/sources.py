"""Where rows come from: files of several kinds, folders, data sets of the Hugging Face Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from ruprompt_fast.errors import PromptFileError, TrainingDataError, shown
from ruprompt_fast.prompts.files.paths import local_path
from ruprompt_fast.runs.data.compressed import COMPRESSIONS, data_suffix
from ruprompt_fast.runs.data.hub_rows import read_dataset, read_folder, read_parquet
from ruprompt_fast.runs.data.json_lines import read_jsonl
from ruprompt_fast.runs.data.json_lists import read_json
from ruprompt_fast.runs.data.plain_text import TEXT_COLUMN, read_text
from ruprompt_fast.runs.data.row_format import DEFAULT_FORMAT, Record, RowFormat
from ruprompt_fast.runs.data.tables import read_table

_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")

TEXT = ".txt"
PARQUET = ".parquet"

READERS: dict[str, Callable[[Path, RowFormat], Iterator[Record]]] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_table,
    ".tsv": read_table,
    TEXT: read_text,
}
"""What reads the files of each suffix, compressed or not."""

FILE_NAMES = (
    f"a file named {', '.join(f'*{suffix}' for suffix in (*READERS, PARQUET))}, but for the last also with "
    f"{', '.join(COMPRESSIONS)} after it"
)
"""The files that rows are read from, in messages."""


def text_column_of(columns: Sequence[str]) -> str:
    """The column that the lines of a text file are: the only one that is asked for, else ``text``."""
    return columns[0] if len(columns) == 1 else TEXT_COLUMN


def records(
    source: str,
    split: str = "train",
    name: str | None = None,
    format: RowFormat = DEFAULT_FORMAT,
    text_column: str = TEXT_COLUMN,
) -> Iterator[Record]:
    """The rows of a source as they are, one by one, see :func:`~ruprompt_fast.runs.data.rows.load_rows`.

    Args:
        source: a file, a folder, or the id of a data set.
        split: of a folder or a data set.
        name: the configuration of a data set.
        format: how files are written.
        text_column: the column that the lines of a text file are.

    Raises:
        TrainingDataError: there is no such source, or it cannot be read.
    """
    path = source_path(source)
    kind = _kind_of(path)
    if kind == "folder":
        return read_folder(path, split, name, READERS, lambda file: _read_file(file, format, text_column))
    if is_row_file(path):
        if kind != "file":
            raise TrainingDataError(
                f"{shown(source)}: expected a file; found {kind}. Paths start from the working directory."
            )
        return read_parquet(path) if path.suffix.lower() == PARQUET else _read_file(path, format, text_column)
    if kind != "none":
        raise TrainingDataError(
            f"{source}: expected {FILE_NAMES}, a folder or the id of a data set; found {kind} with the suffix "
            f"{path.suffix!r}. Convert the file, or rename it."
        )
    if _HUB_ID.fullmatch(source) is None:
        raise TrainingDataError(
            f"{shown(source)}: expected a file, a folder or the id of a data set; found none of these."
        )
    _check_hub_answers(source)
    return read_dataset(source, source, name=name, split=split)


def _check_hub_answers(source: str) -> None:
    """Say at once that nobody answers, which ``datasets`` does after half a minute.

    Raises:
        TrainingDataError: there is a network to be used, and the hub is not reached.
    """
    from huggingface_hub import constants

    from ruprompt_fast.prompts.files.hub import is_reachable

    if not (constants.is_offline_mode() or is_reachable()):
        raise TrainingDataError(
            f"{shown(source)}: expected a file, a folder or the id of a data set; found no such file or folder, and "
            "the hub was not reached. Check the spelling and the network; HF_HUB_OFFLINE=1 reads its cache."
        )


def source_path(source: object) -> Path:
    """The path that a source of rows may name.

    Raises:
        TrainingDataError: it cannot be one.
    """
    try:
        path = local_path(source)
        path.exists()
    except (PromptFileError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise TrainingDataError(f"expected a source of rows; found {shown(source)} ({reason}).") from error
    return path


def _kind_of(path: Path) -> str:
    if path.is_dir():
        return "folder"
    if path.is_file():
        return "file"
    return "a pipe or a device" if path.exists() else "none"


def _read_file(path: Path, format: RowFormat, text_column: str) -> Iterator[Record]:
    suffix = data_suffix(path)
    return read_text(path, format, text_column) if suffix == TEXT else READERS[suffix](path, format)


def is_row_file(path: Path) -> bool:
    """Whether a file's name says that rows can be read from it."""
    return path.suffix.lower() == PARQUET or data_suffix(path) in READERS
