"""Importing prompts stays cheap, and ruPrompts' module names work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

HEAVY = ("transformers", "datasets", "accelerate", "rich", "huggingface_hub", "ruprompt_fast.embedding")


def test_nothing_optional_is_imported() -> None:
    script = (
        "import sys\n"
        "import ruprompt_fast.prompt, ruprompt_fast.prompt_format, ruprompt_fast.prompt_provider\n"
        "import ruprompt_fast.preprocessing, ruprompt_fast.prompts\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stderr
