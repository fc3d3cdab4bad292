"""The command ``ruprompt-fast``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from ruprompt_fast.errors import RupromptError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; an error that the user can mend is one line on standard error and exit status 2."""
    parser = argparse.ArgumentParser(prog="ruprompt-fast", description="Soft prompts over one frozen language model.")
    commands = parser.add_subparsers(dest="command", required=True)
    demo = commands.add_parser("demo", help="generate with every bundled prompt in one batch")
    demo.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    demo.add_argument("--max-new-tokens", type=int, default=40, help="tokens per request at most (default: 40)")
    options = parser.parse_args(arguments)
    try:
        from ruprompt_fast.cli.demo import run

        run(seed=options.seed, max_new_tokens=options.max_new_tokens)
    except RupromptError as error:
        print(f"ruprompt-fast: {error}", file=sys.stderr)
        return 2
    return 0
