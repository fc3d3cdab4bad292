"""All attacks, one kind after another, and what came of them: ``make attack``."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from attack.kinds import KINDS, share
from attack.tally import Tally
from rich.console import Console
from rich.table import Table


def table(tallies: list[Tally]) -> Table:
    """A row for every kind; the last columns count what must not happen."""
    outcomes = ("answered", "refused", "wrong", "raw", "hung", "crashed")
    found = Table("attack", "tried", "answered", "refused by name", "wrong", "raw", "hung", "crashed")
    for tally in tallies:
        found.add_row(tally.name, str(tally.num_tried), *(str(tally.counts[outcome]) for outcome in outcomes))
    return found


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=tuple(KINDS), nargs="*", default=tuple(KINDS))
    arguments = parser.parse_args()
    tallies = []
    for name in arguments.only:
        start = time.monotonic()
        tallies.append(KINDS[name](share(name, 60 * arguments.minutes), arguments.seed))
        print(f"{name}: {tallies[-1].num_tried} in {time.monotonic() - start:.0f} s", flush=True)
    Console(width=110).print(table(tallies))
    problems = [problem for tally in tallies for problem in tally.problems]
    if problems or not all(tally.num_tried for tally in tallies):
        sys.exit("\n".join(problems) or "a kind of attack tried nothing")


if __name__ == "__main__":
    main()
