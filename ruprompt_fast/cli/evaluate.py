"""``ruprompt-fast evaluate --prompt FOLDER --data FILE [--model NAME] [--output FOLDER] [--max_new_tokens N ...]``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ruprompt_fast.cli.options import as_pairs
from ruprompt_fast.runs.answer_config import EvaluateConfig
from ruprompt_fast.runs.parsing import parse_config

if TYPE_CHECKING:
    from ruprompt_fast.runs.measuring import Evaluation

# Measures of which less is better.
_COSTS = ("loss", "word_list_share")


def run(arguments: Sequence[str]) -> None:
    """Measure a prompt on data; print the figures."""
    config = parse_config(EvaluateConfig, as_pairs(arguments, EvaluateConfig), prog="ruprompt-fast evaluate")
    from ruprompt_fast.runs.evaluate import evaluate

    found = evaluate(config)
    console = Console(highlight=False, soft_wrap=True)
    if found.baselines:
        console.print(_table(found))
    else:
        for name, value in found.metrics.items():
            console.print(f"{name}: {value:.6g}")
    where = "" if config.output is None else f"{config.output}: "
    left_out = f", {len(found.bad)} rows were left out" if found.bad else ""
    console.print(f"{where}evaluated in {found.seconds:.1f} seconds{left_out}")


def _table(found: Evaluation) -> Table:
    """The figures; what the prompt is certainly better or worse than is marked, and what it may equal by chance."""
    from ruprompt_fast.runs.baselines import LABELS

    table = Table(caption="prompt certainly better: +, certainly worse: -, no more than chance: =")
    for name in ("", "prompt", *(LABELS[name] for name in found.baselines)):
        table.add_column(name, justify="right" if name else "left")
    for measure, value in found.metrics.items():
        table.add_row(measure, f"{value:.4g}", *(_cell(found, name, measure) for name in found.baselines))
    return table


def _cell(found: Evaluation, baseline: str, measure: str) -> str:
    value = found.baselines[baseline].get(measure)
    if value is None:
        return ""
    difference = found.differences[baseline][measure]
    is_better = (difference.value > 0) != (measure in _COSTS)
    return f"{value:.4g} {('+' if is_better else '-') if difference.is_certain else '='}"
