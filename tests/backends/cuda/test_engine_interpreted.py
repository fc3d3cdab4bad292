"""Runs some of the engine's parity tests on this backend with its kernels, under Triton's interpreter.

All of them run in the suite with the references of the operators in place of the kernels. These need a process of their
own, because Triton decides between compiling and interpreting when it is imported, and they are the least that leads a
step to every kernel in every way.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent

TESTS = {
    "engine/test_greedy_parity.py": [
        "test_greedy[cuda-mistral-7]",  # inputs in chunks, sliding windows, buckets with padding, prompts of all shapes
        "test_beams[cuda-gpt2-7-best]",  # forks, and copies of the pages that they share
        "test_eviction_under_a_mixed_load[cuda]",  # to host memory and back
    ],
    "engine/test_logits.py": ["test_logprobs_after_preemptions[cuda]"],  # samples that are taken back in a bucket
    "engine/test_deep_prompts.py": ["test_streams[cuda]"],
    "model/test_engine_settings.py": ["test_a_seed_for_each[cuda]"],
    "model/test_ensemble_serving.py": ["TestClassify::test_beside_other_prompts[gpt2-cuda]"],
    "model/test_streaming.py": ["test_closing_cancels_the_request[cuda]", "test_an_error_reaches_the_task[cuda]"],
}


def test_under_the_interpreter() -> None:
    tests = [str(HERE.parents[1] / f"{name}::{test}") for name, found in TESTS.items() for test in found]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "FEW_REQUESTS": "1"}
    environment.pop("PYTEST_ADDOPTS", None)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]
    result = subprocess.run(command, cwd=HERE.parents[2], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert f"{len(tests)} passed" in result.stdout
