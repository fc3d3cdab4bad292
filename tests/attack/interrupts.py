"""Attacks with signals and forks: the main thread is interrupted at any moment, and nobody else may notice."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from attack.tally import Tally
from engine.engine_cases import ENDLESS, INPUTS, NAMES, assert_nothing_left, serve
from patience import HANG_SECONDS, exit_code_of

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import DeadlockError

FALLBACK = {"prompt_lookup_num_tokens": 2}
"""What sends a request away from the engine."""


class Interrupter:
    """Raises KeyboardInterrupt in the main thread after a while, once for each time that it is armed."""

    def __init__(self) -> None:
        self.is_armed = False

    def handle(self, number: int, frame: FrameType | None) -> None:
        if self.is_armed:
            self.is_armed = False
            raise KeyboardInterrupt

    def meets(self, call: Callable[[], object], seconds: float) -> bool:
        """Whether the interrupt came before ``call`` was over."""
        try:
            self.is_armed = True
            signal.setitimer(signal.ITIMER_REAL, seconds)
            call()
            self.is_armed = False
        except KeyboardInterrupt:
            return True
        return False


@contextmanager
def interrupter() -> Iterator[Interrupter]:
    """Within the block, the main thread's alarm interrupts."""
    found = Interrupter()
    before = signal.signal(signal.SIGALRM, found.handle)
    try:
        yield found
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def kinds(model: FastPromptModel) -> dict[str, Callable[[], object]]:
    """Calls of every kind that a program makes; the model needs the prompts of ``serve`` and one called extra."""

    def read(pieces: int, **settings: Any) -> None:
        stream = model.stream("привет", "short", max_new_tokens=12, **ENDLESS, **settings)
        for _ in range(pieces):
            next(stream, None)
        stream.close()

    return {
        "batch": lambda: model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS),
        "beams": lambda: model.generate("да", "around", num_beams=3, max_new_tokens=6),
        "samples": lambda: model.generate("да", "short", do_sample=True, num_return_sequences=3, max_new_tokens=6),
        "fallback": lambda: model.generate("да", "short", max_new_tokens=4, **ENDLESS, **FALLBACK),
        "stream": lambda: read(4),
        "stream of the fallback": lambda: read(3, **FALLBACK),
        "classify": lambda: model.classify("привет", "short", labels=["да", "нет"]),
        "add a prompt": lambda: model.add_prompt("extra", model.prompts["short"]),
        "use it": lambda: model.generate("да", "extra", max_new_tokens=3),
        "warm up": model.warm_up,
        "stats": model.stats,
    }


class Bystander:
    """A thread that asks for the same all the time, on both paths, and must get the same.

    Attributes:
        rounds: how often it did.
        problems: what it got instead.
    """

    def __init__(self, model: FastPromptModel) -> None:
        self._model = model
        self._expected = self._ask()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.rounds = 0
        self.problems: list[str] = []

    def __enter__(self) -> Bystander:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(HANG_SECONDS)
        if self._thread.is_alive():
            self.problems.append("hung")

    def _ask(self) -> object:
        by_engine = self._model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS)
        by_fallback = self._model.generate("да", "short", max_new_tokens=4, **ENDLESS, **FALLBACK)
        return by_engine, by_fallback

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if self._ask() != self._expected:
                    self.problems.append("another text")
                self.rounds += 1
        except BaseException as error:
            self.problems.append(repr(error))


def fork_outcome(model: FastPromptModel) -> str:
    """What a child forked now finds when it uses the model: ``refused`` is what it should."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            model.generate("да", max_new_tokens=2)
        except DeadlockError:
            code = 0
        finally:
            os._exit(code)
    found = exit_code_of(child)
    if found is None:
        return "hung"
    return "refused" if found == 0 else "wrong"


def attack(seconds: float, seed: int) -> Tally:
    """Attack for about so long; runs on the main thread, which is where signals go."""
    tally, chance = Tally("interrupts"), random.Random(seed)
    model = serve(num_pages=40)
    model.add_prompt("extra", model.prompts["short"])
    calls = kinds(model)
    end = time.monotonic() + seconds
    with interrupter() as interrupts, Bystander(model) as bystander:
        while time.monotonic() < end:
            if chance.random() < 0.01:
                tally.record(fork_outcome(model), "a forked child")  # type: ignore[arg-type]
                continue
            name = chance.choice(tuple(calls))
            with tally.judged(name):
                interrupts.meets(calls[name], 10 ** chance.uniform(-4.7, -2))
    for problem in bystander.problems:
        tally.record("hung" if problem == "hung" else "wrong", f"beside the interrupts: {problem}")
    with tally.judged("afterwards"):
        assert_nothing_left(model)
    return tally
