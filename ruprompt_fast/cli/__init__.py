"""The command ``ruprompt-fast``."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from ruprompt_fast import __version__
from ruprompt_fast.errors import (
    MAX_MESSAGE_CHARS,
    ConfigError,
    DivergenceError,
    EngineStepError,
    FileWriteError,
    FrozenWeightsError,
    IntegrityError,
    NonFiniteLogitsError,
    RupromptError,
    shown,
)

COMMANDS = {
    "demo": "generate with every bundled prompt in one batch",
    "train": "train a prompt for a task",
    "evaluate": "measure a prompt on data",
    "generate": "answer every row of a file with a prompt",
    "convert-base": "save a GGUF file's model as a folder that every command takes",
    "sweep": "train prompts over a grid of settings and compare them",
}
"""What each command does; the module of the same name has its ``run(arguments)``, imported only when it is called."""


# Ends of a run that nothing on the command line could have prevented.
_FAILURES = (DivergenceError, EngineStepError, FileWriteError, FrozenWeightsError, IntegrityError, NonFiniteLogitsError)

_TRACEBACK_VARIABLE = "RUPROMPT_FAST_TRACEBACK"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit status.

    An error is one line on standard error. Status 2 is for what can be mended on the command line, in a configuration
    or in a file; 1 for a run that failed; 130 for Ctrl-C. Progress bars are for terminals alone.
    """
    is_process = arguments is None
    given = list(sys.argv[1:] if arguments is None else arguments)
    if is_process:
        _occupy_standard_files()
    try:
        status = _run(given)
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        if is_process:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # another one would interrupt the way out
        _say("interrupted; start it again, with resume=true for train, and it goes on")
        status = 130
    except (RupromptError, OSError) as error:
        _say(str(error))
        is_failure = isinstance(error, _FAILURES) or not isinstance(error, RupromptError)
        status = 1 if is_failure else 2
    except Exception as error:  # a mistake of ours, or memory that ran out: still no page of code for the user
        if os.environ.get(_TRACEBACK_VARIABLE):
            raise
        _say(f"unexpected {type(error).__name__}: {shown(str(error), 1000)[1:-1]}; {_TRACEBACK_VARIABLE}=1 shows where")
        status = 1
    if is_process:
        _give_up_unread_output()
    return status


def _run(given: Sequence[str]) -> int:
    command = _command(given[:1])  # what follows is the command's own
    for number, argument in enumerate(given[1:], start=2):
        _check_argument(number, argument)
    if sys.stderr is None or not sys.stderr.isatty():
        _hide_progress_bars()
    importlib.import_module(f"{__name__}.{command.replace('-', '_')}").run(given[1:])
    return 0


def _command(given: Sequence[str]) -> str:
    """The command that the first argument names; what is no command ends the program with how to use it."""
    parser = argparse.ArgumentParser(
        prog="ruprompt-fast",
        description="Soft prompts over one frozen language model.",
        epilog="ruprompt-fast COMMAND --help says what a command takes.",
    )
    parser.add_argument("--version", action="version", version=f"ruprompt-fast {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="command")
    for name, summary in COMMANDS.items():
        commands.add_parser(name, help=summary, add_help=False)
    if not given:
        parser.print_help(sys.stderr)
        parser.exit(2)
    if not given[0].startswith("-") and given[0] not in COMMANDS:
        from ruprompt_fast.runs.data.rows import nearest

        parser.error(
            f"there is no command {shown(given[0])}; the commands are {', '.join(COMMANDS)}."
            f"{nearest(given[0], COMMANDS)}"
        )
    command = parser.parse_args(given).command
    if command is None:
        parser.error(f"expected a command before its options; the commands are {', '.join(COMMANDS)}.")
    return str(command)


def _check_argument(number: int, argument: str) -> None:
    """Refuse an argument that cannot be written down again, as configurations are."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ConfigError(f"argument {number} must be UTF-8; found {shown(argument)}.") from None
    if "\0" in argument:
        raise ConfigError(f"argument {number} must be text without null bytes; found {shown(argument)}.")


def _say(message: str) -> None:
    """Write one line, of characters that a terminal shows."""
    words = " ".join(message.split())
    if len(words) > MAX_MESSAGE_CHARS:
        words = f"{words[: MAX_MESSAGE_CHARS // 2]} ... {words[-MAX_MESSAGE_CHARS // 4 :]}"
    line = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in words)
    with suppress(OSError, AttributeError):  # standard error may be closed too
        print(f"ruprompt-fast: {line.encode('utf-8', 'backslashreplace').decode()}", file=sys.stderr, flush=True)


def _occupy_standard_files() -> None:
    """Open what the process was started without: else the first file that it writes would be its standard output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) < 3:  # it takes the lowest number that is free
        pass
    os.close(descriptor)


def _give_up_unread_output() -> None:
    """Drop what nobody reads or has room for: Python would try to write it once more, and complain."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _hide_progress_bars() -> None:
    """Those of the libraries that load models and data, which are imported when a command needs them."""
    for name in ("HF_DATASETS_DISABLE_PROGRESS_BARS", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")
    if "transformers" in sys.modules:
        from transformers.utils import logging

        logging.disable_progress_bar()
