"""Writing tensors and texts so that a file appears complete or not at all; reading one's own tensors back."""

from __future__ import annotations

import io
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ruprompt_fast.errors import FileWriteError, shown
from ruprompt_fast.prompts.files.paths import checked_path
from ruprompt_fast.prompts.files.reading.regular_file import open_regular
from ruprompt_fast.prompts.files.reading.safetensors_file import safetensors_index

ROWS_KEY = "prompt_embeddings"
"""The name of the rows in a safetensors file, PEFT's and ours."""

Write = Callable[[Path], None]
"""Fills the file at a path."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file of one's own, however large, on the CPU.

    Raises:
        PromptFileError: the file is missing, truncated or something else.
    """
    with open_regular(path, None) as file:
        return {name: stored.read() for name, stored in safetensors_index(file).items()}


def write_rows(rows: Tensor, path: str | os.PathLike[str]) -> None:
    """Write rows to ``*.safetensors``, or with ``torch.save`` to any other name, see :func:`write_atomically`."""
    write_atomically(path, rows_writer(rows, path))


def rows_writer(rows: Tensor, path: str | os.PathLike[str]) -> Write:
    """What :func:`write_rows` does, for :func:`write_together`."""
    plain = rows.detach().cpu().clone(memory_format=torch.contiguous_format)
    if str(path).endswith(".safetensors"):
        return lambda file: save_file({ROWS_KEY: plain}, file, metadata={"format": "pt"})
    return lambda file: _torch_save(plain, file)


def _torch_save(rows: Tensor, path: Path) -> None:
    # Through memory: torch's own writer makes a RuntimeError of a full disk.
    buffer = io.BytesIO()
    torch.save(rows, buffer)
    path.write_bytes(buffer.getbuffer())


def write_text(path: Path, text: str) -> None:
    """Write a text file, see :func:`write_atomically`."""
    write_atomically(path, text_writer(text))


def text_writer(text: str) -> Write:
    """What :func:`write_text` does, for :func:`write_together`."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    return write


def write_atomically(path: str | os.PathLike[str], write: Write) -> None:
    """Let ``write`` fill a file beside ``path``, then move it there, so that no reader ever sees a part of it.

    Raises:
        FileWriteError: the path is a folder, a link or a device, or the file cannot be written. What was there is there
            still.
    """
    write_together({Path(checked_path(path)): write})


def write_together(files: Mapping[Path, Write]) -> None:
    """:func:`write_atomically` for several files of one folder: none is moved to its place before all are complete.

    Raises:
        FileWriteError: see :func:`write_atomically`.
    """
    temporaries: dict[Path, Path] = {}
    try:
        for target, write in files.items():
            with named_errors(target):
                _check_target(target)
                # Not named after the target: that may have the longest name that the file system takes.
                temporary = target.parent / f".{secrets.token_hex(16)}.tmp"
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                temporaries[target] = temporary
                mode = temporary.stat().st_mode
                write(temporary)
                # safetensors writes files that only their owner may read, whatever the umask says.
                temporary.chmod(mode)
                _sync(temporary)
        for target, temporary in temporaries.items():
            with named_errors(target):
                os.replace(temporary, target)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Create a folder and those that it lies in, as far as they do not exist.

    Raises:
        FileWriteError: it cannot be created.
    """
    with named_errors(path):
        path.mkdir(parents=True, exist_ok=True)


def _check_target(path: Path) -> None:
    """Refuse to put a file in the place of something that is none: the device or the link would be lost."""
    if not path.name:
        raise FileWriteError(f"expected a path of a file; found {shown(str(path))}.")
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a link" if stat.S_ISLNK(mode) else "a device or a pipe"
        raise FileWriteError(f"{path}: expected a file to write; found {kind}. Choose another name.")


def _sync(path: Path) -> None:
    """Have the disk hold the file before its name leads to it: a name is moved sooner than the bytes are written."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Raise our error for one of the operating system about writing to ``path``."""
    try:
        yield
    except FileWriteError:
        raise
    except (OSError, SafetensorError) as error:
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileWriteError(f"{path}: cannot be written: {shown(detail)[1:-1]}.") from error
