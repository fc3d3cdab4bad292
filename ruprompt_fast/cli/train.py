"""``ruprompt-fast train config.yaml key=value ...``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ruprompt_fast.runs.config import TrainConfig
from ruprompt_fast.runs.parsing import parse_config


def run(arguments: Sequence[str]) -> None:
    """Train a prompt as a configuration says; print where it is and its figures."""
    config = parse_config(TrainConfig, arguments, prog="ruprompt-fast train")
    from ruprompt_fast.runs.train import is_main_process, train

    outcome = train(config)
    if not is_main_process():
        return
    console = Console(highlight=False, soft_wrap=True)
    for name, value in outcome.metrics.items():
        console.print(f"{name}: {value:.6g}")
    console.print(f"{outcome.folder}: trained in {outcome.seconds:.1f} seconds")
