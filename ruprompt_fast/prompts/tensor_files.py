"""Reading and writing tensors without trusting the file.

A prompt's file may come from anybody. Pickled code is never run (``weights_only``), and what comes out must be plain
dense numbers: ``torch.load`` would also rebuild sparse tensors whose indices point out of bounds, views that are larger
than what they look at, and tensors without data.
"""

from __future__ import annotations

import os
import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from ruprompt_fast.errors import NonFiniteRowsError, PromptFileError, UnsafeFileError

ROWS_KEY = "prompt_embeddings"
"""The name of the rows in a safetensors file, PEFT's and ours."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file, on the CPU.

    Raises:
        PromptFileError: the file is missing, truncated or something else.
    """
    tensors = {}
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            for key in file.keys():  # noqa: SIM118 (not a mapping)
                tensors[key] = file.get_tensor(key)
    except (safetensors.SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise PromptFileError(
            f"{path}: expected a complete safetensors file; {_reason(error)}. Download or save it again."
        ) from error
    return tensors


def read_torch(path: Path) -> Any:
    """What ``torch.save`` wrote, as far as it is made of tensors and plain values.

    Raises:
        UnsafeFileError: the file contains code, or objects that need it.
        PromptFileError: the file is missing, truncated or something else.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            f"{path}: expected the tensor of a prompt; found other pickled objects, which could run code when loaded. "
            "They were not loaded. Ask for the prompt as a safetensors file."
        ) from error
    except Exception as error:  # a malformed pickle can make the unpickler raise anything
        raise PromptFileError(
            f"{path}: expected a tensor written by torch.save; {_reason(error)}. Download or save it again."
        ) from error


def checked_rows(value: Any, path: Path, num_rows: int | None = None, width: int | None = None) -> Tensor:
    """The rows in a value that came out of a file: a new tensor [rows, width] of float32, float16 or bfloat16.

    Args:
        value: what was read.
        path: the file, for messages.
        num_rows: how many rows there must be, if known.
        width: how wide they must be, if known.

    Raises:
        UnsafeFileError: not a plain dense tensor.
        PromptFileError: a tensor of another dtype or shape.
        NonFiniteRowsError: NaN or infinity among the numbers.
    """
    _check_plain(value, path)
    expected = f"[{'rows' if num_rows is None else num_rows}, {'width' if width is None else width}]"
    shape = tuple(value.shape)
    fits = len(shape) == 2 and 0 not in shape and num_rows in (None, shape[0]) and width in (None, shape[1])
    if not fits:
        raise PromptFileError(
            f"{path}: expected rows {expected}, as the prompt's template and config say; found {list(shape)}. "
            "The prompt's files do not belong together, or are for another prompt: download or save them again."
        )
    if value.dtype not in _DTYPES:
        raise PromptFileError(f"{path}: expected floating-point rows; found {value.dtype}. Save the prompt again.")
    if not bool(torch.isfinite(value).all()):
        raise NonFiniteRowsError(
            f"{path}: expected numbers; found NaN or infinity among the rows. Take an earlier checkpoint of the prompt."
        )
    dtype = torch.float32 if value.dtype == torch.float64 else value.dtype
    rows: Tensor = value.detach().to(dtype)
    return rows.clone(memory_format=torch.contiguous_format)


def write_rows(rows: Tensor, path: str | os.PathLike[str]) -> None:
    """Write rows to ``*.safetensors``, or with ``torch.save`` to any other name; the file appears complete or not."""
    plain = rows.detach().cpu().clone(memory_format=torch.contiguous_format)
    if str(path).endswith(".safetensors"):
        write_atomically(path, lambda file: save_file({ROWS_KEY: plain}, file, metadata={"format": "pt"}))
    else:
        write_atomically(path, lambda file: torch.save(plain, file))


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there, so that no reader ever sees a part of it."""
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors writes files that only their owner may read, whatever the umask says
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _check_plain(value: Any, path: Path) -> None:
    if not isinstance(value, Tensor):
        problem = f"an object of type {type(value).__name__}"
    elif value.layout is not torch.strided or value.is_nested:
        problem = f"a tensor with layout {value.layout}"
    elif value.device.type != "cpu" or value.is_quantized or type(value) not in (Tensor, torch.nn.Parameter):
        problem = f"a {type(value).__name__} of {value.dtype} on {value.device}"
    elif value.numel() * value.element_size() > value.untyped_storage().nbytes():
        problem = f"a view of {list(value.shape)} over {value.untyped_storage().nbytes()} bytes"
    else:
        return
    raise UnsafeFileError(
        f"{path}: expected one dense tensor of numbers; found {problem}. Ask for the prompt as a safetensors file."
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "found no such file"
    return (
        f"reading it failed with {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    )


def write_text(path: Path, text: str) -> None:
    """Write a text file, which appears complete or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)
