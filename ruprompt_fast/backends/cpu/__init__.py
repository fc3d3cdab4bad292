"""The CPU: packed layers, paged attention in C++, sampling in NumPy."""

from ruprompt_fast.backends.cpu.backend import CpuBackend

__all__ = ["CpuBackend"]
