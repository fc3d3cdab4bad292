"""How much memory a process takes at most from some moment on."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

_PROCESS = Path("/proc/self")


class PeakMemory:
    """The peak since it was made, over what was in use then: resident bytes on a CPU, allocated ones on a GPU.

    On a CPU it reads Linux's ``/proc``; elsewhere the peak is 0.

    Args:
        device: ``cpu`` or ``cuda``.
        loaded: tensors that are in use already; a file's pages count as resident only once they are read.
    """

    def __init__(self, device: str, loaded: Sequence[Tensor]) -> None:
        self._device = device
        for tensor in loaded:
            tensor.detach().sum()
        gc.collect()
        if device == "cpu" and _PROCESS.exists():
            ctypes.CDLL(None).malloc_trim(0)
            (_PROCESS / "clear_refs").write_text("5")  # the peak is the present size from here on
        elif device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        self._base = self._peak()

    def peak_bytes(self) -> int:
        """The largest number of bytes so far, over the first one."""
        return self._peak() - self._base

    def _peak(self) -> int:
        if self._device == "cuda":
            torch.cuda.synchronize()
            return torch.cuda.max_memory_allocated()
        status = _PROCESS / "status"
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
        return 1024 * int(found[1]) if found else 0
