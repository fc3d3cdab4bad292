"""``ruprompt-fast evaluate --prompt FOLDER --data FILE [--model NAME] [--output FOLDER] [--max_new_tokens N ...]``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ruprompt_fast.cli.options import as_pairs
from ruprompt_fast.runs.answer_config import EvaluateConfig
from ruprompt_fast.runs.parsing import parse_config


def run(arguments: Sequence[str]) -> None:
    """Measure a prompt on data; print the figures."""
    config = parse_config(EvaluateConfig, as_pairs(arguments, EvaluateConfig), prog="ruprompt-fast evaluate")
    from ruprompt_fast.runs.evaluate import evaluate

    found = evaluate(config)
    console = Console(highlight=False, soft_wrap=True)
    for name, value in found.metrics.items():
        console.print(f"{name}: {value:.6g}")
    where = "" if config.output is None else f"{config.output}: "
    left_out = f", {len(found.bad)} rows were left out" if found.bad else ""
    console.print(f"{where}evaluated in {found.seconds:.1f} seconds{left_out}")
