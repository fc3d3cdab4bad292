"""One run at a time for each output: a lock file that names its owner.

The lock is the operating system's (``flock``), on a descriptor that the owner keeps open: it ends with the process,
however that dies. What a killed owner leaves is a file that nobody holds, which the next one takes.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from ruprompt_fast.errors import OutputInUseError, shown
from ruprompt_fast.file_writer import naming_write_errors

LOCK_FILE = ".ruprompt-fast.lock"
"""The lock of a folder, inside it."""

_OWNER_BYTES = 4096

# An owner writes its name right after taking the lock; how often, and with what pause, another waits for it.
_READS = 50
_PAUSE_SECONDS = 0.01

# Folders vanish under a run that starts just when another one gives up; each attempt needs one that does.
_TRIES = 100

_logger = logging.getLogger(__name__)

_held: set[int] = set()


def _forget_held() -> None:
    """Close a forked child's copies: it must not keep what its parent owned alive."""
    for descriptor in _held:
        with suppress(OSError):
            os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_held)


@contextmanager
def owning_folder(folder: Path) -> Iterator[None]:
    """Own an output folder, which is made if need be, and removed again if nothing was written into it.

    Raises:
        OutputInUseError: another run owns it; the message says which process, where and since when.
        FileWriteError: it cannot be made or written to.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        with _owning(folder / LOCK_FILE, folder):
            yield
    finally:
        _remove_empty(missing)


@contextmanager
def owning_file(path: Path) -> Iterator[None]:
    """Own an output file, as :func:`owning_folder` does a folder; the lock is beside it while it is held."""
    missing = [place for place in path.parents if not place.exists()]
    try:
        with _owning(path.with_name(f".{path.name}.lock"), path):
            yield
    finally:
        _remove_empty(missing)


@contextmanager
def _owning(lock: Path, output: Path) -> Iterator[None]:
    owner = os.getpid()
    with naming_write_errors(output):
        descriptor = _take(lock, output)
    _held.add(descriptor)
    try:
        yield
    finally:
        if os.getpid() == owner:  # a forked child that unwinds owns nothing
            if _is_at(descriptor, lock):
                lock.unlink(missing_ok=True)
            _held.discard(descriptor)
            os.close(descriptor)


def _take(lock: Path, output: Path) -> int:
    """Open and lock the file, and write down who did."""
    for _ in range(_TRIES):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:  # an owner that wrote nothing has removed its folder
            continue
        except FileExistsError:  # it did so while `mkdir` looked whether what exists is a folder
            if any(place.exists() and not place.is_dir() for place in (lock.parent, *lock.parent.parents)):
                raise
            continue
        try:
            _lock(descriptor, output)
            # An owner removes the file as it leaves: what was locked may be a file without a name.
            if _is_at(descriptor, lock):
                _write_owner(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    raise FileNotFoundError(f"{lock} vanishes again and again")


def _lock(descriptor: int, output: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OutputInUseError(
            f"{output}: expected an output that no other run writes to; found one that {_owner(descriptor)} writes to "
            "now. Wait for it, or name another output."
        ) from None
    except OSError as error:
        _logger.warning(
            "%s: its file system knows no locks (%s); see to it that no second run writes there.", output, error
        )


def _write_owner(descriptor: int) -> None:
    since = datetime.now().astimezone().isoformat(timespec="seconds")
    owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(owner).encode() + b"\n", 0)


def _owner(descriptor: int) -> str:
    """The owner in words."""
    for _ in range(_READS):
        with suppress(ValueError, OSError):
            owner = json.loads(os.pread(descriptor, _OWNER_BYTES, 0))
            if isinstance(owner, dict):
                pid, host, since = (shown(owner.get(name)).strip("'") for name in ("pid", "host", "since"))
                return f"process {pid} on {host}, since {since},"
        time.sleep(_PAUSE_SECONDS)
    return "an unknown process"


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one that has this name."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _remove_empty(folders: list[Path]) -> None:
    """Remove those of the folders, the innermost first, in which nothing is."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
