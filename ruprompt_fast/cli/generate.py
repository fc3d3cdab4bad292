"""``ruprompt-fast generate --prompt FOLDER --input FILE --output FILE [--model NAME] [--max_new_tokens N ...]``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from ruprompt_fast.cli.options import as_pairs
from ruprompt_fast.file_writer import is_stream
from ruprompt_fast.runs.answer_config import GenerateConfig
from ruprompt_fast.runs.parsing import parse_config


def run(arguments: Sequence[str]) -> None:
    """Answer every row of a file with a prompt; print how many there are now."""
    config = parse_config(GenerateConfig, as_pairs(arguments, GenerateConfig), prog="ruprompt-fast generate")
    from ruprompt_fast.runs.generate import generate

    outcome = generate(config)
    before = f", {outcome.num_before} of them were there before" if outcome.num_before else ""
    left_out = f"; {len(outcome.bad)} were left out" if outcome.bad else ""
    # Results that go to standard output are there alone.
    Console(highlight=False, soft_wrap=True, stderr=is_stream(outcome.output)).print(
        f"{outcome.output}: {outcome.num_rows} rows{before}{left_out}; {outcome.seconds:.1f} seconds"
    )
