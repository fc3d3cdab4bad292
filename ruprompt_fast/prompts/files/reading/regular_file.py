"""Opening a file that may be anything, and reading parts of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ruprompt_fast.errors import PromptFileError, shown

_FLAGS = os.O_RDONLY | sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_CLOEXEC", "O_NOCTTY", "O_BINARY"))

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class RegularFile:
    """A file that is open for reading.

    The bytes are read, not mapped: a mapped file that somebody shortens meanwhile would kill the process.

    Attributes:
        path: the file, for messages.
        size: its size in bytes when it was opened.
    """

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path = path
        self.size = size
        self._file = file

    def read(self, start: int, length: int) -> bytes:
        """The bytes from ``start`` on.

        Raises:
            PromptFileError: the file does not have them.
        """
        return bytes(self.read_buffer(start, length))

    def read_buffer(self, start: int, length: int) -> bytearray:
        """:meth:`read` into new memory that may be changed.

        Raises:
            PromptFileError: the file does not have the bytes; nothing is allocated then.
        """
        if start < 0 or length < 0 or start + length > self.size:
            raise self.broken(f"found {self.size} bytes where {start + length} are needed")
        buffer = bytearray(length)
        view = memoryview(buffer)
        try:
            self._file.seek(start)
            done = 0
            while done < length:
                count = self._file.readinto(view[done:])  # type: ignore[attr-defined]
                if not count:
                    raise self.broken("it became shorter while it was read")
                done += count
        except OSError as error:
            raise self.broken(reason(error)) from error
        return buffer

    def broken(self, problem: str) -> PromptFileError:
        """The error to raise about a file that is damaged."""
        return PromptFileError(f"{self.path}: expected a complete file; {problem}. Download or save it again.")


@contextmanager
def open_regular(path: Path, max_bytes: int | None, what: str = "a file") -> Iterator[RegularFile]:
    """Open a file for reading; it is closed after the block.

    Args:
        path: the file; links are followed.
        max_bytes: how large it may be; None for files of one's own.
        what: what it should be, for messages.

    Raises:
        PromptFileError: there is no such file, it may not be read, is too large, or is a folder, pipe or device.
    """
    try:
        # Asked before opening, too: opening a device may have an effect.
        _check_regular(path, os.stat(path).st_mode)
        descriptor = os.open(path, _FLAGS)
    except (OSError, ValueError) as error:
        raise PromptFileError(f"{path}: expected {what}; {reason(error)}.") from error
    with open(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        _check_regular(path, status.st_mode)
        if max_bytes is not None and status.st_size > max_bytes:
            raise PromptFileError(
                f"{path}: expected a file of at most {max_bytes} bytes; found {status.st_size}. It was not read."
            )
        yield RegularFile(path, file, status.st_size)


def reason(error: OSError | ValueError) -> str:
    """What the operating system says about a path, in words that follow "expected a file;"."""
    if isinstance(error, FileNotFoundError):
        return "found no such file"
    if isinstance(error, OSError):
        return f"the system says: {error.strerror or type(error).__name__}"
    return shown(str(error))[1:-1]


def _check_regular(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise PromptFileError(f"{path}: expected a regular file; found {kind}. It was not read.")
