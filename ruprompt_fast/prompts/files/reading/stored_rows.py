"""The rows of a prompt out of whatever a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ruprompt_fast.errors import NonFiniteRowsError, PromptFileError, UnsafeFileError
from ruprompt_fast.precision import are_finite
from ruprompt_fast.prompts.files.reading.stored_tensor import StoredTensor

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_rows(value: Any, path: Path, num_rows: int | None = None, width: int | None = None) -> Tensor:
    """The rows that a file holds: a new tensor [rows, width] of float32, float16 or bfloat16.

    They are read only when their description fits, so a wrong file costs nothing.

    Args:
        value: what was found in the file.
        path: the file, for messages.
        num_rows: how many rows there must be, if known.
        width: how wide they must be, if known.

    Raises:
        UnsafeFileError: not a tensor.
        PromptFileError: a tensor of another dtype or shape.
        NonFiniteRowsError: NaN or infinity among the numbers.
    """
    if not isinstance(value, StoredTensor):
        raise UnsafeFileError(
            f"{path}: expected one dense tensor of numbers; found an object of type {type(value).__name__}. Ask for "
            "the prompt as a safetensors file."
        )
    expected = f"[{'rows' if num_rows is None else num_rows}, {'width' if width is None else width}]"
    shape = value.shape
    fits = len(shape) == 2 and 0 not in shape and num_rows in (None, shape[0]) and width in (None, shape[1])
    if not fits:
        raise PromptFileError(
            f"{path}: expected rows {expected}, as the prompt's template and config say; found {list(shape)}. "
            "The prompt's files do not belong together, or are for another prompt: download or save them again."
        )
    if value.dtype not in _DTYPES:
        raise PromptFileError(f"{path}: expected floating-point rows; found {value.dtype}. Save the prompt again.")
    rows = value.read()
    return finite_rows(rows.float() if rows.dtype == torch.float64 else rows, path)


def finite_rows(rows: Tensor, path: Path) -> Tensor:
    """Rows as they are, if they are numbers.

    Raises:
        NonFiniteRowsError: NaN or infinity among the numbers.
    """
    if not are_finite([rows]):
        raise NonFiniteRowsError(
            f"{path}: expected numbers; found NaN or infinity among the rows. Take an earlier checkpoint of the prompt."
        )
    return rows
