"""Files that may be compressed, opened as what they hold, with a bound on how much that is."""

from __future__ import annotations

import io
import lzma
import zlib
from bz2 import BZ2File
from collections.abc import Callable
from gzip import GzipFile
from pathlib import Path
from typing import Any, BinaryIO, cast

from ruprompt_fast.errors import MissingDependencyError, TrainingDataError

MAX_EXPANSION = 250
"""How many bytes one compressed byte may become: texts shrink to a tenth, files made to fill memory to a thousandth."""

FREE_BYTES = 2**26
"""Bytes that any compressed file may hold, whatever they are made of."""

MAX_XZ_MEMORY = 2**28
"""Memory that the decoder of an .xz file may take: xz -9 needs a quarter of it, a file may ask for 4 GiB."""

DECODING_ERRORS = (EOFError, zlib.error, lzma.LZMAError)
"""What damaged files raise, beside ``OSError``."""

_CHUNK = 2**16


def data_suffix(path: Path) -> str:
    """The suffix that says how a file's rows are written, in lower case: ``.csv`` of ``rows.csv.gz``."""
    return (path.with_suffix("") if path.suffix.lower() in COMPRESSIONS else path).suffix.lower()


def open_content(path: Path) -> io.BufferedReader:
    """Open a file, or what a compressed one holds.

    Raises:
        TrainingDataError: while it is read: more comes out of a compressed file than any text takes.
        MissingDependencyError: a package that decompresses it is not installed.
        OSError: it cannot be opened.
    """
    opener = COMPRESSIONS.get(path.suffix.lower())
    if opener is None:
        return path.open("rb")
    limit = FREE_BYTES + MAX_EXPANSION * path.stat().st_size
    return io.BufferedReader(_Bounded(opener(path), path, limit))


class _Bounded(io.RawIOBase):
    """A stream that gives so many bytes and no more."""

    def __init__(self, content: BinaryIO, path: Path, limit: int) -> None:
        self._content = content
        self._path = path
        self._limit = self._left = limit

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._content.read(min(len(buffer), _CHUNK))
        self._left -= len(data)
        if self._left < 0:
            raise TrainingDataError(
                f"{self._path}: expected a compressed file of at most {self._limit} bytes, {MAX_EXPANSION} times its "
                "own size; found more, as in one that was made to fill the memory. Decompress it first if it is yours."
            )
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._content.close()
        super().close()


class _XzStream(io.RawIOBase):
    """What an .xz file holds, one stream of it after another; ``lzma.open`` knows no bound on memory."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._decoder = _xz_decoder()
        self._ahead = b""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while True:
            if self._decoder.eof:
                self._ahead = self._decoder.unused_data.lstrip(b"\0") or self._file.read(_CHUNK).lstrip(b"\0")
                if not self._ahead:
                    return b""
                self._decoder = _xz_decoder()
            elif self._decoder.needs_input and not self._ahead:
                self._ahead = self._file.read(_CHUNK)
                if not self._ahead:
                    raise EOFError("the file ends in the middle")
            ahead, self._ahead = self._ahead, b""
            if data := self._decoder.decompress(ahead, size):
                return data

    def close(self) -> None:
        self._file.close()
        super().close()


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=MAX_XZ_MEMORY)


def _open_zstd(path: Path) -> BinaryIO:
    try:
        import pyarrow  # type: ignore[import-untyped]
    except ImportError as error:
        raise MissingDependencyError(
            f"reading {path} needs the package pyarrow; install it with pip install 'ruprompt-fast[train]'."
        ) from error
    return cast(BinaryIO, pyarrow.input_stream(str(path), compression="zstd"))


COMPRESSIONS: dict[str, Callable[[Path], BinaryIO]] = {
    ".gz": lambda path: cast(BinaryIO, GzipFile(path)),
    ".bz2": lambda path: cast(BinaryIO, BZ2File(path)),
    ".xz": lambda path: cast(BinaryIO, _XzStream(path)),
    ".zst": _open_zstd,
}
"""What opens the files of each suffix."""
