"""One frozen model answering with several soft prompts in one batch."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from ruprompt_fast import bundled
from ruprompt_fast.core import ClassificationOutput, GenerationOutput

REQUESTS: tuple[tuple[str | None, str], ...] = (
    (None, "Вечером"),
    ("proverb", "Вечером"),
    ("verse", "Вечером"),
    ("gogol", "Вечером"),
    ("proverb", "Без труда"),
    ("proverb", "Старый друг"),
    ("verse", "Я помню"),
    ("verse", "Над морем"),
    ("gogol", "Иван Иванович"),
    ("gogol", "В комнату вошёл"),
)
"""(prompt, input) of every request: the same input under each prompt, then more of each."""

CLASSIFIED = (
    "На берегу пустынных волн Стоял он, дум великих полн, И вдаль глядел. Пред ним широко Река неслася;",
    "В департаменте… но лучше не называть, в каком департаменте.",
)
"""What ``kind`` chooses a label word for, « стихи» (verse) or « рассказ» (prose): two held-out works begin so."""


def run(arguments: Sequence[str]) -> None:
    """Load the bundled model, generate one mixed batch, print a table and a line of figures."""
    parser = argparse.ArgumentParser(prog="ruprompt-fast demo")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    parser.add_argument("--max-new-tokens", type=int, default=40, help="tokens per request at most (default: 40)")
    options = parser.parse_args(arguments)
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = bundled.load()
    torch.manual_seed(options.seed)
    started = time.perf_counter()
    outputs = model.generate(
        [text for _, text in REQUESTS],
        prompt=[name for name, _ in REQUESTS],
        max_new_tokens=options.max_new_tokens,
        do_sample=True,
        temperature=0.7,
        top_p=0.9,
        repetition_penalty=1.15,
    )
    seconds = time.perf_counter() - started
    verdicts = model.classify(list(CLASSIFIED), prompt="kind", labels=bundled.LABELS)
    console = Console()
    console.print(_table(outputs, verdicts))
    tokens = sum(len(output.token_ids) for output in outputs)
    console.print(f"{len(outputs)} requests, {tokens} tokens, {seconds:.2f} seconds in one batch of mixed prompts")


def _table(outputs: list[GenerationOutput], verdicts: list[ClassificationOutput]) -> Table:
    table = Table(title="One frozen model, many soft prompts", show_lines=True)
    table.add_column("prompt", style="cyan", no_wrap=True)
    table.add_column("input", style="bold", max_width=30)
    table.add_column("continuation", max_width=80)
    for (name, text), output in zip(REQUESTS, outputs, strict=True):
        table.add_row(name or "(none)", text, output.text.strip())
    for text, verdict in zip(CLASSIFIED, verdicts, strict=True):
        table.add_row("kind", text, f"{str(verdict.label).strip()} ({verdict.probabilities[verdict.label]:.0%})")
    return table
