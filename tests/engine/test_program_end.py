"""Programs that end, are interrupted or fork in the midst of work: in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from patience import HANG_SECONDS

TESTS = Path(__file__).parents[1]

SETUP = f"""
import os, signal, sys, threading, time
sys.path.insert(0, {str(TESTS)!r})
from engine.engine_cases import ENDLESS, Fault, hooked, serve
from patience import exit_code_of, wait_for
from ruprompt_fast.errors import RupromptError

LOOKUP = {{"prompt_lookup_num_tokens": 2}}
model = serve()
slow = Fault(lambda: time.sleep(0.01))
hooks = hooked(model, slow)
hooks.__enter__()

def stream(**settings):
    found = model.stream("да", max_new_tokens=100, **ENDLESS, **settings)
    next(found)
    return found
"""

OPEN_STREAMS = "kept = [stream(), stream(**LOOKUP)]"

DAEMONS = """
def forever(settings):
    while True:
        model.generate("да", max_new_tokens=20, **ENDLESS, **settings)

for settings in ({}, LOOKUP, {}, LOOKUP):
    threading.Thread(target=forever, args=(settings,), daemon=True).start()
wait_for(lambda: slow.calls > 10)
"""

INTERRUPTED_TWICE = """
def interrupt():
    wait_for(lambda: slow.calls > 5)
    for _ in range(4):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

threading.Thread(target=interrupt, daemon=True).start()
while True:
    model.generate("да", max_new_tokens=100, **ENDLESS, **SETTINGS)
"""

FORKED = """
kept = stream(**LOOKUP)
child = os.fork()
if child == 0:
    try:
        next(kept)
    except RupromptError:
        sys.exit(0)  # through the ends of everything
    os._exit(3)
assert exit_code_of(child) == 0
assert len("".join(kept)) > 10
"""


def code_of(program: str) -> int:
    """The exit code of a program; minus the signal that killed it."""
    command = [sys.executable, "-c", SETUP + program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert "terminate called" not in done.stderr
    return done.returncode


@pytest.mark.slow
@pytest.mark.parametrize("program", [OPEN_STREAMS, DAEMONS, FORKED], ids=["streams", "daemons", "forked"])
def test_a_program_ends_in_the_midst_of_work(program: str) -> None:
    assert code_of(program) == 0


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["{}", "LOOKUP"], ids=["engine", "fallback"])
def test_a_program_that_is_interrupted_again_and_again(settings: str) -> None:
    assert code_of(INTERRUPTED_TWICE.replace("SETTINGS", settings)) in (1, 130, -2)
