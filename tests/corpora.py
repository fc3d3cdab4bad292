"""Where the texts are that are too large to ship; tests that need one are skipped without it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("RUPROMPT_FAST_DATA", Path(__file__).parents[2] / "shared" / "data"))


def corpus(name: str) -> Path:
    """The path of a corpus file; skips the test where it is not there."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not shipped with the package; set RUPROMPT_FAST_DATA to the folder that holds it")
    return path
