"""Writing outputs: what fails is named, and streams are told from files."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ruprompt_fast.errors import FileWriteError, RupromptError

# Names of what the process has open already, whatever that is: a terminal, a pipe, a file that a shell writes.
_OPEN_FILE = re.compile(r"/dev/(stdin|stdout|stderr|fd/\d+)|/proc/[^/]+/fd/\d+")

_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.tmp")

_READ_BYTES = 1 << 20

# What torch.save says in its RuntimeError where it cannot write.
_TORCH_WRITER = "PytorchStreamWriter"


@contextmanager
def naming_write_errors(output: Path) -> Iterator[None]:
    """Name what the operating system refuses while an output is written.

    Raises:
        FileWriteError: the disk is full, the place is write-protected, or nobody reads the pipe.
    """
    try:
        yield
    except RupromptError:
        raise
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and _TORCH_WRITER not in str(error):
            raise
        reason = getattr(error, "strerror", None) or error
        raise FileWriteError(
            f"{output}: cannot be written ({reason}). What was written before is whole; make room, or see to it that "
            "the place can be written to, and start again."
        ) from error


def write_all(descriptor: int, content: bytes) -> None:
    """Write all of the content, which the operating system may take in parts."""
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def is_unfinished(name: str) -> bool:
    """Whether a name is one that ``write_atomically`` gives a file until it is complete."""
    return _UNFINISHED.fullmatch(name) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove what a run that was killed was writing to its own folder: files that never got their names."""
    for path in folder.iterdir():
        if is_unfinished(path.name) and path.is_file() and not path.is_symlink():
            path.unlink(missing_ok=True)


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
