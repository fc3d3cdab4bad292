"""A progress bar for long batches."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_LONG_BATCH = 32


@contextmanager
def progress_bar(total: int | None, shown: bool | None) -> Iterator[Callable[[int], None] | None]:
    """A bar over ``total`` requests on standard error, and the function that tells it how many are done.

    Args:
        total: the number of requests, if it is known.
        shown: whether to show it; None shows it for long batches if standard error is a terminal.
    """
    if shown is None:
        shown = (total is None or total >= _LONG_BATCH) and sys.stderr.isatty()
    if not shown:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("generating", total=total)
        yield lambda done: bar.update(task, completed=done)
