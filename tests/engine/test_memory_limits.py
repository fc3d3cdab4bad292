"""Steps that run out of memory, and what many threads leave behind. In processes of their own: a limit stays."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

TESTS = Path(__file__).parents[1]

RUNS_OUT = """
import resource, torch
from engine.engine_cases import ENDLESS
from tiny_models import tiny_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel
from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import EngineStepError

torch.manual_seed(0)
base = GPT2LMHeadModel(GPT2Config(vocab_size=50264, n_embd=512, n_layer=4, n_head=8, n_positions=2048)).eval()
model = FastPromptModel.from_pretrained(base, tokenizer=tiny_tokenizer(), kv_cache_bytes=200 << 20)

def generate(length):
    return model.generate(["а" * length] * 8, max_new_tokens=3, suppress_tokens=[0], **ENDLESS)

expected = generate(50)
failed = 0
for megabytes in (1, 4, 16):
    pages = int(open("/proc/self/statm").read().split()[0])
    limit = pages * resource.getpagesize() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    try:
        generate(1500)
    except EngineStepError:
        failed += 1
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    for _ in range(2):
        assert generate(50) == expected
    model.check_integrity()
print("failed", failed)
"""

MANY_THREADS = """
import gc, threading
from engine.engine_cases import ENDLESS, INPUTS, NAMES, serve

model = serve(num_pages=64)

def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20

def work():
    for _ in range(3):
        model.generate(INPUTS, NAMES, max_new_tokens=12, **ENDLESS)

def together():
    threads = [threading.Thread(target=work) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

for _ in range(5):
    together()
before = resident()
for _ in range(5):
    together()
print("grown", resident() - before)
"""


ON_SECOND = """
from ruprompt_fast.backends import BACKENDS
from backends.second_backend import SecondBackend

BACKENDS["cpu"] = lambda device, dtype: SecondBackend(dtype)
"""


def run(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(TESTS)!r})\n{program}"],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("setup", ["", ON_SECOND], ids=["cpu", "second"])
def test_after_a_step_without_memory_the_next_request_is_served(setup: str) -> None:
    """A device without memory is in tests/backends/cuda."""
    failed = int(run(setup + RUNS_OUT).split()[-1])
    assert failed > 0, "no step ran out of memory, so nothing was tested"


@pytest.mark.slow
def test_memory_does_not_grow_with_threads_and_sizes_of_steps() -> None:
    """160 threads come and go; with code for every number of tokens it would grow by some 300 MiB."""
    assert float(run(MANY_THREADS).split()[-1]) < 60
