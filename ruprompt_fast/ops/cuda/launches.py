"""Who wants to know which Triton kernels are launched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

_KERNELS = "ruprompt_fast.kernels."


@contextmanager
def watch_launches(watcher: Callable[[str, Sequence[Any]], None]) -> Iterator[None]:
    """Within the block, every launch of one of our kernels is told: its name, and its arguments by position and name.

    Kernels whose modules are imported within the block are not watched.
    """
    hooks = [(kernel.pre_run_hooks, partial(_tell, watcher, kernel.__name__)) for kernel in _kernels()]
    for hooks_of_kernel, hook in hooks:
        hooks_of_kernel.append(hook)
    try:
        yield
    finally:
        for hooks_of_kernel, hook in hooks:
            hooks_of_kernel.remove(hook)


def _kernels() -> list[Any]:
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_KERNELS)]
    found = {
        id(value): value for module in modules for value in vars(module).values() if hasattr(value, "pre_run_hooks")
    }
    return list(found.values())


def _tell(watcher: Callable[[str, Sequence[Any]], None], name: str, *args: Any, **kwargs: Any) -> None:
    watcher(name, (*args, *kwargs.values()))
