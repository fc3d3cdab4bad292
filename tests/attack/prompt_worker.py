"""Loads prompts in a process of its own and says what came of it, one line of JSON for each line read.

A line ``{"kind": "prompt", "path": ...}`` is answered by ``{"outcome": ..., "what": ...}``; kinds are ``prompt``,
``ensemble``, ``multi``, and ``save``, which writes an ensemble from ``source`` over the folder.
"""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch

from ruprompt_fast.errors import MAX_MESSAGE_CHARS, RupromptError
from ruprompt_fast.prompts import MultiPrompt, Prompt, PromptEnsemble

MAX_SECONDS = 10.0
"""Processor time that a refusal may take."""

MAX_GROWTH = 100 * 2**20
"""Bytes that a refusal may take more than the process had."""


def load(request: dict[str, Any]) -> list[Prompt]:
    """Carry out a request; the prompts that came of it."""
    path = request["path"]
    if request["kind"] == "ensemble":
        return PromptEnsemble.from_pretrained(path).members
    if request["kind"] == "multi":
        return list(MultiPrompt({"a": path}).prompts.values())
    if request["kind"] == "save":
        PromptEnsemble.from_pretrained(request["source"]).save_pretrained(path)
        return []
    return [Prompt.from_pretrained(path)]


def problem_of(prompt: Prompt) -> str | None:
    """What is wrong with a prompt that was loaded."""
    rows = prompt.rows()
    if rows.ndim != 2 or rows.shape[0] != prompt.format.prompt_length:
        return f"rows of {list(rows.shape)} for {prompt.format.prompt_length} in the template"
    if prompt.config.row_width not in (None, rows.shape[1]):
        return f"rows of {list(rows.shape)} for a width of {prompt.config.row_width}"
    return None if bool(torch.isfinite(rows).all()) else "rows that are not finite"


def judged(request: dict[str, Any]) -> tuple[str, str]:
    """Outcome, and what to say of it."""
    gc.collect()
    start, before = time.process_time(), _memory("VmRSS")
    _forget_peak()
    try:
        prompts = load(request)
    except RupromptError as error:
        seconds, growth = time.process_time() - start, _memory("VmHWM") - before
        message = str(error)
        message.encode()
        if seconds > MAX_SECONDS or growth > MAX_GROWTH or len(message) > MAX_MESSAGE_CHARS:
            return "raw", f"{seconds:.2f} s, {growth >> 20} MB, {len(message)} characters: {message[:100]}"
        return "refused", message
    except Exception as error:
        return "raw", f"{type(error).__name__}: {error}"[:300]
    problems = [problem for prompt in prompts if (problem := problem_of(prompt)) is not None]
    return ("wrong", problems[0]) if problems else ("answered", "")


def _forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # then the peak is the whole life's, and growth counts what earlier requests took


def _memory(name: str) -> int:
    """A figure of the process, in bytes."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 2**10
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 2**10


def main() -> None:
    """Answer until there is nothing more to read."""
    gc.freeze()  # what was imported is not looked through at every request
    print(json.dumps({"outcome": "ready"}), flush=True)
    for line in sys.stdin:
        outcome, what = judged(json.loads(line))
        print(json.dumps({"outcome": outcome, "what": what}), flush=True)


if __name__ == "__main__":
    main()
