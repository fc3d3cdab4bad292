"""Real signals: the main thread is interrupted at any moment, and nobody else notices."""

from __future__ import annotations

import random
import threading

import pytest
from attack.interrupts import FALLBACK, Bystander, interrupter, kinds
from engine.engine_cases import ENDLESS, INPUTS, NAMES, REQUESTS, Fault, assert_nothing_left, hooked, serve
from patience import join_all, wait_until_set

pytestmark = pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only"
)


def test_a_thousand_interrupts_leave_nothing_behind() -> None:
    """While another thread gets the texts that it gets alone."""
    model = serve(num_pages=40)
    model.add_prompt("extra", model.prompts["short"])
    expected = model.generate(INPUTS, NAMES, max_new_tokens=6, **ENDLESS)
    chance = random.Random(0)
    calls = list(kinds(model).values())
    with interrupter() as interrupts, Bystander(model) as bystander:
        hits = 0
        while (hits < 1000 or bystander.rounds < 10) and not bystander.problems:
            hits += interrupts.meets(chance.choice(calls), 10 ** chance.uniform(-4.7, -2))
    assert bystander.problems == []
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
        wait_until_set(go_on)

    with hooked(model, Fault(wait, (3,))), interrupter() as interrupts:
        thread.start()
        wait_until_set(in_step)
        assert interrupts.meets(lambda: model.generate(INPUTS, NAMES, max_new_tokens=6), 0.05)
        go_on.set()
        join_all([thread])
    assert found == [expected]
    assert_nothing_left(model)


@pytest.mark.parametrize("settings", [{}, FALLBACK], ids=["engine", "fallback"])
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
