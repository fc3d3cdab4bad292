"""A file of a prompt's rows, of which safetensors and ``torch.save`` make one each."""

from __future__ import annotations

import os

from torch import Tensor

from ruprompt_fast.file_writer import Write, tensors_writer, torch_writer, write_atomically

ROWS_KEY = "prompt_embeddings"
"""The name of the rows in a safetensors file, PEFT's and ours."""


def write_rows(rows: Tensor, path: str | os.PathLike[str]) -> None:
    """Write rows to ``*.safetensors``, or with ``torch.save`` to any other name; the file appears complete.

    Raises:
        FileWriteError: see :func:`~ruprompt_fast.file_writer.write_atomically`.
    """
    write_atomically(path, rows_writer(rows, path))


def rows_writer(rows: Tensor, path: str | os.PathLike[str]) -> Write:
    """What :func:`write_rows` does, for :func:`~ruprompt_fast.file_writer.write_together`."""
    return tensors_writer({ROWS_KEY: rows}) if str(path).endswith(".safetensors") else torch_writer(rows)
