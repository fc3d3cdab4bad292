"""Every kernel at the shape that it is for: ruGPT-3 Large's layers, 64 sequences.

A case is checked against its reference in the stage ``tests`` and timed in the stage ``speed``.
"""

from __future__ import annotations

from collections.abc import Callable

from gpu import page_kernels, row_kernels
from gpu.case import Case
from gpu.measurement import Setting

__all__ = ["CASES", "Case"]

CASES: dict[str, Callable[[Setting], Case]] = {**row_kernels.CASES, **page_kernels.CASES}
