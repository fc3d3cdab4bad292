"""The task configurations that come with the package, by name."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType

_HERE = Path(__file__).parents[1] / "tasks"
_SMALL = "-small"

TASK_FILES = MappingProxyType({file.stem: file for file in sorted(_HERE.glob("*.yaml"), key=lambda file: file.stem)})
"""The files by name. ``NAME-small`` holds what a trial run on a CPU has in place of NAME's values."""


def configs_of(argument: str) -> list[Path]:
    """The files that an argument of the command line names, each of which overrides the one before.

    Args:
        argument: the path of a file, or the name of a task unless there is a file of that name.
    """
    path = TASK_FILES.get(argument)
    if path is None or Path(argument).is_file():
        return [Path(argument)]
    whole = TASK_FILES.get(argument.removesuffix(_SMALL), path)
    return [path] if whole == path else [whole, path]


def summary_of(path: Path) -> str:
    """What a file says about itself in its first comment, up to the first full stop."""
    comment = path.read_text(encoding="utf-8").split("\n\n")[0]
    text = " ".join(line.removeprefix("#").strip() for line in comment.splitlines() if line.startswith("#"))
    return text.split(". ")[0].rstrip(".")
