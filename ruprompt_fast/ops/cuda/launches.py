"""Who wants to know which Triton kernels are launched."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, TypeAlias

Watcher: TypeAlias = Callable[[str, Sequence[Any]], AbstractContextManager[None]]
"""For a kernel's name, and its grid and arguments, what to enter while it is launched."""

_KERNELS = "ruprompt_fast.kernels."


@contextmanager
def watch_launches(watcher: Watcher) -> Iterator[None]:
    """Within the block, every launch of one of our kernels runs in the context that ``watcher`` gives for it.

    Kernels whose modules are imported within the block are not watched.
    """
    kernels = _kernels()
    for kernel in kernels:
        kernel.run = partial(_run, watcher, kernel.__name__, kernel.run)
    try:
        yield
    finally:
        for kernel in kernels:
            del kernel.run  # the class has it


def _kernels() -> list[Any]:
    modules = [module for name, module in list(sys.modules.items()) if name.startswith(_KERNELS)]
    found = {
        id(value): value for module in modules for value in vars(module).values() if hasattr(value, "pre_run_hooks")
    }
    return list(found.values())


def _run(watcher: Watcher, name: str, run: Callable[..., Any], *args: Any, grid: Any, **kwargs: Any) -> Any:
    with watcher(name, (grid, *args, *kwargs.values())):
        return run(*args, grid=grid, **kwargs)
