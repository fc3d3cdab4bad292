"""The command ``ruprompt-fast``."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from ruprompt_fast.errors import RupromptError

COMMANDS = {
    "demo": "generate with every bundled prompt in one batch",
    "train": "train a prompt for a task",
    "evaluate": "measure a prompt on data",
    "generate": "answer every row of a file with a prompt",
    "sweep": "train prompts over a grid of settings and compare them",
}
"""What each command does; the module of the same name has its ``run(arguments)``, imported only when it is called."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    An error that the user can mend, or one of the operating system, is one line on standard error and status 2, Ctrl-C
    is status 130. Progress bars are for terminals alone.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(prog="ruprompt-fast", description="Soft prompts over one frozen language model.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    # What follows the command is the command's own.
    command = parser.parse_args(given[:1]).command
    if not sys.stderr.isatty():
        _hide_progress_bars()
    try:
        importlib.import_module(f"{__name__}.{command}").run(given[1:])
    except (RupromptError, OSError) as error:
        print(f"ruprompt-fast: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ruprompt-fast: interrupted", file=sys.stderr)
        return 130
    return 0


def _hide_progress_bars() -> None:
    """Those of the libraries that load models and data."""
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")  # datasets is imported when rows are read with it
    from transformers.utils import logging

    logging.disable_progress_bar()
