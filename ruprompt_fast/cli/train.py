"""``ruprompt-fast train config.yaml key=value ...``, or the name of a shipped task in the file's place; ``--list``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ruprompt_fast.runs.config import TrainConfig
from ruprompt_fast.runs.parsing import parse_config
from ruprompt_fast.runs.task_files import TASK_FILES, summary_of


def run(arguments: Sequence[str]) -> None:
    """Train a prompt as a configuration says; print where it is and its figures. ``--list`` shows the shipped tasks."""
    if "--list" in arguments:
        _list_tasks()
        return
    config = parse_config(TrainConfig, arguments, prog="ruprompt-fast train")
    from ruprompt_fast.runs.train import is_main_process, train

    outcome = train(config)
    if not is_main_process():
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, value in outcome.metrics.items():
        console.print(f"{name}: {value:.6g}")
    console.print(f"{outcome.folder}: trained in {outcome.seconds:.1f} seconds")


def _list_tasks() -> None:
    table = Table("task", "what it trains", title="ruprompt-fast train TASK data.train=FILE data.validation=FILE ...")
    for name, path in TASK_FILES.items():
        table.add_row(name, summary_of(path))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"The files are in {next(iter(TASK_FILES.values())).parent}.", soft_wrap=True)
