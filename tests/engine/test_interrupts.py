"""Real signals: the main thread is interrupted at any moment, and nobody else notices."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from engine.engine_cases import ENDLESS, INPUTS, NAMES, REQUESTS, Fault, assert_nothing_left, hooked, serve, wait_for

from ruprompt_fast import FastPromptModel

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only"
)

PADDED = {"prompt_lookup_num_tokens": 2}


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
    found = Interrupter()
    before = signal.signal(signal.SIGALRM, found.handle)
    try:
        yield found
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def read(model: FastPromptModel, pieces: int, **settings: object) -> None:
    stream = model.stream("привет", "short", max_new_tokens=12, **ENDLESS, **settings)
    for _ in range(pieces):
        next(stream, None)
    stream.close()


def kinds(model: FastPromptModel) -> list[Callable[[], object]]:
    """Calls of every kind that a program makes."""
    return [
        lambda: model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS),
        lambda: model.generate("да", "around", num_beams=3, max_new_tokens=6),
        lambda: model.generate("да", "short", do_sample=True, num_return_sequences=3, max_new_tokens=6),
        lambda: model.generate("да", "short", max_new_tokens=4, **ENDLESS, **PADDED),
        lambda: read(model, 4),
        lambda: read(model, 3, **PADDED),
        lambda: model.classify("привет", "short", labels=["да", "нет"]),
        lambda: model.add_prompt("extra", model.prompts["short"]),
        lambda: model.generate("да", "extra", max_new_tokens=3),
        model.warm_up,
        model.stats,
    ]


def test_thousands_of_interrupts_leave_nothing_behind() -> None:
    """While other threads get the texts that they get alone."""
    model = serve(num_pages=40)
    model.add_prompt("extra", model.prompts["short"])
    expected = model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS)
    padded = model.generate("да", "short", max_new_tokens=4, **ENDLESS, **PADDED)
    stop, problems, rounds = threading.Event(), [], [0]

    def others() -> None:
        try:
            while not stop.is_set():
                rounds[0] += 1
                if model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS) != expected:
                    problems.append("engine")
                if model.generate("да", "short", max_new_tokens=4, **ENDLESS, **PADDED) != padded:
                    problems.append("padded")
        except BaseException as error:
            problems.append(repr(error))

    thread = threading.Thread(target=others)
    thread.start()
    chance = random.Random(0)
    calls = kinds(model)
    with interrupter() as interrupts:
        hits = sum(interrupts.meets(chance.choice(calls), 10 ** chance.uniform(-4.7, -2)) for _ in range(2500))
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert problems == []
    assert hits > 1000
    assert rounds[0] > 10
    assert_nothing_left(model)
    assert model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS) == expected


def test_an_interrupt_does_not_wait_for_the_end_of_a_long_request() -> None:
    model = serve()
    calls = Fault(lambda: None)
    with hooked(model, calls), interrupter() as interrupts:
        assert interrupts.meets(lambda: [model.generate("да", max_new_tokens=110, **ENDLESS) for _ in range(200)], 0.2)
    assert calls.calls < 200 * 110
    assert_nothing_left(model)


def test_an_interrupt_in_a_step_leaves_the_requests_of_other_threads_alone() -> None:
    """The step goes on to its end; the interrupted thread's requests leave before the next."""
    model = serve()
    expected = model.generate("привет", "short", max_new_tokens=40, **ENDLESS)
    found: list[object] = []
    thread = threading.Thread(
        target=lambda: found.append(model.generate("привет", "short", max_new_tokens=40, **ENDLESS))
    )
    in_step = threading.Event()
    go_on = threading.Event()

    def wait() -> None:
        in_step.set()
        go_on.wait(20)

    with hooked(model, Fault(wait, (3,))), interrupter() as interrupts:
        thread.start()
        wait_for(in_step.is_set)
        assert interrupts.meets(lambda: model.generate(INPUTS, NAMES, max_new_tokens=6), 0.05)
        go_on.set()
        thread.join(20)
    assert found == [expected]
    assert_nothing_left(model)


@pytest.mark.parametrize("settings", [{}, PADDED], ids=["engine", "padded"])
def test_streams_that_are_interrupted_and_forgotten(settings: dict[str, int]) -> None:
    model = serve()
    text, name = REQUESTS[0]
    whole = "".join(model.stream(text, name, max_new_tokens=30, **ENDLESS, **settings))
    chance = random.Random(1)
    with interrupter() as interrupts:
        for _ in range(40):
            stream = model.stream(text, name, max_new_tokens=30, **ENDLESS, **settings)
            interrupts.meets(lambda stream=stream: list(stream), 10 ** chance.uniform(-4, -1.7))
            del stream
    assert_nothing_left(model)
    assert "".join(model.stream(text, name, max_new_tokens=30, **ENDLESS, **settings)) == whole
