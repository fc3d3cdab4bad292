"""Every Python example of the README runs as written; what it loads from the hub comes from a server on localhost."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prompts.hub_server import running_hub

from ruprompt_fast import Prompt, bundled

README = Path(__file__).parents[1] / "README.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
HUB_MODEL = "ai-forever/rugpt3large_based_on_gpt2"
HUB_PROMPT = "konodyuk/prompt_rugpt3large_joke"


def ruprompts_files(folder: Path) -> dict[str, bytes]:
    """A prompt in ruPrompts' own two files, fit for the bundled model that replaces ruGPT-3 Large here."""
    Prompt.from_pretrained(bundled.PROMPTS["proverb"]).save_pretrained(folder, save_bin=True)
    config = (folder / "prompt.json").read_text(encoding="utf-8")
    stored = config.replace("ruprompt-fast/ruslit-gpt2-7m", f"sberbank-ai/{HUB_MODEL.split('/')[1]}")
    return {"prompt.json": stored.encode(), "prompt_provider.bin": (folder / "prompt_provider.bin").read_bytes()}


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 5
    assert any(HUB_MODEL in example and HUB_PROMPT in example for example in EXAMPLES)


@pytest.mark.parametrize("example", EXAMPLES, ids=range(len(EXAMPLES)))
def test_example_runs(example: str, tmp_path: Path) -> None:
    (tmp_path / "example.py").write_text(example, encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    with running_hub() as hub:
        hub.create(HUB_MODEL, {file.name: file.read_bytes() for file in bundled.MODEL.iterdir()})
        hub.create(HUB_PROMPT, ruprompts_files(tmp_path / "prompt"))
        result = subprocess.run(
            [sys.executable, "example.py"],
            cwd=tmp_path,
            env={**environment, "HF_ENDPOINT": hub.endpoint},
            capture_output=True,
            text=True,
            check=False,
        )
    assert result.returncode == 0, result.stderr
    if "print(" in example:
        assert result.stdout.strip()
