"""How much memory is free."""

from __future__ import annotations

import os
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_bytes() -> int:
    """Bytes that are free without swapping: the kernel's estimate, within a container's limit."""
    return int(min(_machine_bytes(), _container_bytes()))


def _machine_bytes() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name == "MemAvailable":  # includes the file cache, unlike free memory
                return int(value.split()[0]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes() -> float:
    limit, used = _CGROUP / "memory.max", _CGROUP / "memory.current"
    if not limit.exists() or not used.exists() or (most := limit.read_text().strip()) == "max":
        return float("inf")
    return max(0, int(most) - int(used.read_text()))
