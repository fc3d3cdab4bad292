"""The package's one way to write: files and folders appear complete or not at all, and every failure has a name.

A file is written under an unfinished name beside its place, reaches the disk, and only then gets its name. What a run
that was killed leaves is known by that name, and :func:`remove_unfinished` takes it away.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from ruprompt_fast.errors import FileWriteError, RupromptError, shown

if TYPE_CHECKING:
    from torch import Tensor

Write = Callable[[Path], object]
"""Fills the file at a path."""

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")

# Names of what the process has open already, whatever that is: a terminal, a pipe, a file that a shell writes.
_OPEN_FILE = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/[^/]+/fd/\d+")

# What torch.save says in its RuntimeError where it cannot write: a file that is begun, or its end.
_TORCH_WRITER = re.compile("PytorchStreamWriter|iostream error")

_READ_BYTES = 1 << 20


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
            with naming_write_errors(target):
                _check_target(target)
                temporary = _unfinished_path(target.parent)
                os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
                temporaries[target] = temporary
                mode = temporary.stat().st_mode
                write(temporary)
                # safetensors writes files that only their owner may read, whatever the umask says.
                temporary.chmod(mode)
                # A name is moved sooner than the bytes are written.
                sync(temporary)
        for target, temporary in temporaries.items():
            with naming_write_errors(target):
                os.replace(temporary, target)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, see :func:`write_atomically`."""
    write_atomically(path, text_writer(text))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write a JSON file, see :func:`write_atomically`."""
    write_text(path, json.dumps(dict(content), indent=2, ensure_ascii=False) + "\n")


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file, see :func:`write_atomically`."""
    write_atomically(path, tensors_writer(tensors))


def text_writer(text: str) -> Write:
    """What :func:`write_text` does, for :func:`write_together`."""
    return lambda temporary: temporary.write_text(text, encoding="utf-8")


def tensors_writer(tensors: Mapping[str, Tensor]) -> Write:
    """What :func:`write_tensors` does, for :func:`write_together`."""
    from safetensors.torch import save_file

    plain = {name: _plain(tensor) for name, tensor in tensors.items()}
    return lambda temporary: save_file(plain, temporary, metadata={"format": "pt"})


def torch_writer(tensor: Tensor) -> Write:
    """``torch.save`` of one bare tensor, for :func:`write_atomically` and :func:`write_together`."""
    import torch

    # Through memory: torch's own writer makes a RuntimeError of a full disk.
    buffer = io.BytesIO()
    torch.save(_plain(tensor), buffer)
    return lambda temporary: temporary.write_bytes(buffer.getbuffer())


def make_folder(path: Path) -> None:
    """Create a folder and those that it lies in, as far as they do not exist.

    Raises:
        FileWriteError: it cannot be created.
    """
    with naming_write_errors(path):
        path.mkdir(parents=True, exist_ok=True)


@contextmanager
def unfinished_folder(parent: Path) -> Iterator[Path]:
    """A new folder to fill and then to rename to its place in ``parent``; removed again where that did not happen."""
    temporary = _unfinished_path(parent)
    temporary.mkdir()
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def append_all(descriptor: int, content: bytes, num_bytes: int | None, sync: bool = False) -> None:
    """Append all of the content to an open file, or nothing of it.

    Args:
        descriptor: the file.
        content: what to append.
        num_bytes: the file's size; None for a stream, which keeps what it took.
        sync: whether the content is on the disk when this returns.
    """
    rest = memoryview(content)
    try:
        while rest:  # the operating system may take it in parts
            rest = rest[os.write(descriptor, rest) :]
        if sync:
            os.fsync(descriptor)
    except OSError:
        if num_bytes is not None:
            os.ftruncate(descriptor, num_bytes)
        raise


@contextmanager
def naming_write_errors(path: Path) -> Iterator[None]:
    """Name what the operating system refuses while an output is written.

    Raises:
        FileWriteError: the disk is full, the place is write-protected, or nobody reads the pipe.
    """
    try:
        yield
    except RupromptError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not _TORCH_WRITER.search(str(error)):
            raise
        detail = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise FileWriteError(
            f"{path}: cannot be written: {shown(detail)[1:-1]}. What was written before is whole; make room, or see to "
            "it that the place can be written to, and start again."
        ) from error


def is_unfinished(name: str) -> bool:
    """Whether a name is one that a file or folder has until it is complete."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove what a run that was killed was writing to its own folder: files that never got their names."""
    for path in folder.iterdir():
        if is_unfinished(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have a file or folder reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def is_stream(path: Path) -> bool:
    """Whether a path names a pipe, a device, or what the process has open already: it is read or written, no more."""
    if _OPEN_FILE.fullmatch(os.path.normpath(os.path.abspath(path))):
        return True
    return path.exists() and not path.is_file() and not path.is_dir()


def checked_path(path: object) -> str:
    """A path that a caller gave, as a string.

    Raises:
        FileWriteError: it is something else.
    """
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise FileWriteError(f"expected a path; found {shown(path)} of type {type(path).__name__}.")
    if problem := path_problem(text):
        raise FileWriteError(f"{shown(text)}: {problem}.")
    return text


def path_problem(path: str) -> str | None:
    """What keeps a string from being a path on any file system; None if nothing does."""
    if "\0" in path:
        return "a path cannot hold a null byte"
    try:
        os.fsencode(path)
    except UnicodeEncodeError:
        return "a path cannot hold half a character, a lone surrogate"
    return None


def _unfinished_path(parent: Path) -> Path:
    # Not named after the target: that may have the longest name that the file system takes.
    return parent / f".{secrets.token_hex(16)}.tmp"


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


def _plain(tensor: Tensor) -> Tensor:
    """The numbers alone, on the CPU, in memory of their own."""
    import torch

    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
