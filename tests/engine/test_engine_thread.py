"""The engine's thread for servers: coroutines are told what steps bring, and how their requests end."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import pytest
import torch
from attack.interrupts import Bystander
from engine.engine_cases import (
    ENDLESS,
    INPUTS,
    NAMES,
    REQUESTS,
    Fault,
    assert_nothing_left,
    counts,
    hooked,
    num_orders,
    serve,
)
from engine.test_program_end import code_of
from patience import HANG_SECONDS, exit_code_of, join_all, wait_for, wait_until_set

from ruprompt_fast import FastPromptModel
from ruprompt_fast.concurrency import threads
from ruprompt_fast.engine import engine_thread
from ruprompt_fast.engine.jobs import SamplingJob
from ruprompt_fast.errors import (
    CapacityError,
    DeadlockError,
    DetachedModelError,
    EngineStepError,
    ModelChangedError,
    SettingError,
    UnknownPromptError,
)
from ruprompt_fast.requests.calls import split_extras

T = TypeVar("T")

LONG = {"max_new_tokens": 100, **ENDLESS}
LOOKUP = {"prompt_lookup_num_tokens": 2}
"""What sends a request to the transformers fallback."""


@pytest.fixture(scope="module")
def served() -> FastPromptModel:
    return serve()


@pytest.fixture
def model(served: FastPromptModel) -> Iterator[FastPromptModel]:
    """A model whose engine thread runs."""
    with served.engine_thread:
        yield served
    assert_nothing_left(served)


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, HANG_SECONDS))


async def until(condition: Callable[[], object]) -> None:
    """Return as soon as the condition holds, and keep the event loop free."""
    await asyncio.to_thread(wait_for, condition)


async def text_of(model: FastPromptModel, item: Any = "привет", name: str | None = "short", **settings: Any) -> str:
    return "".join([piece async for piece in model.astream(item, name, **settings)])


async def raised(work: Awaitable[object], kind: type[Exception], match: str) -> None:
    with pytest.raises(kind, match=match):
        await work


async def all_raise(works: list[Awaitable[object]], kind: type[Exception], match: str) -> None:
    await asyncio.gather(*[raised(work, kind, match) for work in works])


def together(model: FastPromptModel, num_requests: int = 2) -> Fault:
    """Holds the first step up until so many requests are there: all of them are in the second one."""

    def are_there() -> bool:
        return len(model._dispatcher._current.engine._jobs) + num_orders(model) >= num_requests

    return Fault(lambda: wait_for(are_there), (1,))


def submitted(model: FastPromptModel, has_news: Callable[[], bool]) -> engine_thread.Call:
    """A long request of the running event loop."""
    task, current = model._calls.streamed_task("да", None, None, *split_extras(LONG)), model._dispatcher._current
    job = SamplingJob(task.request, task.params(), current._decoder, streaming=True)
    return model.engine_thread.submit(current.engine, [job], has_news)


# what is given


@pytest.mark.parametrize("path", [{}, LOOKUP], ids=["engine", "fallback"])
def test_pieces_add_up(model: FastPromptModel, path: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 20, **ENDLESS, **path}
    names = ["short", "around", None, "bare"] * 3
    expected = [output.text for output in model.generate(["привет"] * len(names), names, **settings)]

    async def work() -> list[str]:
        return await asyncio.gather(*[text_of(model, "привет", name, **settings) for name in names])

    assert run(work()) == expected


SETTINGS = [
    ENDLESS,
    {"do_sample": True, "seed": 11, "temperature": 1.5, "eos_token_id": None},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "seed": 4, "num_return_sequences": 3, "output_scores": True},
    {"do_sample": True, "seed": 4, "num_return_sequences": 3, "encoder_repetition_penalty": 1.1},
]


@pytest.mark.parametrize("runs", [True, False], ids=["with", "without"])
def test_agenerate_is_generate(served: FastPromptModel, runs: bool) -> None:
    async def work() -> list[Any]:
        batches = [served.agenerate(INPUTS, NAMES, max_new_tokens=8, **settings) for settings in SETTINGS]
        singles = [served.agenerate(*request, max_new_tokens=8, **ENDLESS) for request in REQUESTS]
        return await asyncio.gather(*batches, *singles)

    expected = [served.generate(INPUTS, NAMES, max_new_tokens=8, **settings) for settings in SETTINGS]
    expected += [served.generate(*request, max_new_tokens=8, **ENDLESS) for request in REQUESTS]
    if runs:
        with served.engine_thread:
            assert run(work()) == expected
    else:
        assert run(work()) == expected
    assert_nothing_left(served)


def test_one_call_on_both_paths(model: FastPromptModel) -> None:
    configs = [model.model.generation_config, None] * 3
    configs[0] = type(configs[0])(**LOOKUP)
    expected = model.generate(INPUTS, NAMES, configs, max_new_tokens=6)
    assert run(model.agenerate(INPUTS, NAMES, configs, max_new_tokens=6)) == expected


def test_progress_is_shown(model: FastPromptModel, capsys: pytest.CaptureFixture[str]) -> None:
    run(model.agenerate(INPUTS, NAMES, max_new_tokens=3, progress=True))
    assert f"{len(INPUTS)}/{len(INPUTS)}" in capsys.readouterr().err


def test_news_that_come_before_the_last_ones_are_looked_at(model: FastPromptModel) -> None:
    """The event loop is held up from the first report until the engine has nothing left to tell of."""
    told: list[int] = []

    def report(num_done: int) -> None:
        told.append(num_done)
        if len(told) == 1:
            wait_for(lambda: counts(model)["running"] == 0)

    tasks = [
        model._calls.streamed_task("да", None, None, *split_extras({"max_new_tokens": length, **ENDLESS}))
        for length in (2, 4, 6)
    ]
    assert len(run(model._dispatcher.agenerate(tasks, report))) == 3
    assert (told[0], told[-1]) == (1, 3)


# how it is given


def test_one_hop_for_each_step_and_one_thread_for_each_request(
    model: FastPromptModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    hops, helpers = 0, 0
    call_in, to_thread = engine_thread._call_in, asyncio.to_thread

    def count_hop(*arguments: Any) -> None:
        nonlocal hops
        hops += 1
        call_in(*arguments)

    async def count_helper(*arguments: Any) -> Any:
        nonlocal helpers
        helpers += 1
        return await to_thread(*arguments)

    async def work() -> list[str]:
        return await asyncio.gather(*[text_of(model, max_new_tokens=40, **ENDLESS) for _ in range(8)])

    monkeypatch.setattr(engine_thread, "_call_in", count_hop)
    monkeypatch.setattr(asyncio, "to_thread", count_helper)
    before = counts(model)["steps"]
    assert len(set(run(work()))) == 1
    assert hops <= counts(model)["steps"] - before
    assert helpers == 8


def test_submitting_does_not_wait_for_a_step(model: FastPromptModel) -> None:
    """A step goes on until the event loop, which has given the engine another request meanwhile, says so."""
    go_on = threading.Event()
    step = Fault(lambda: wait_until_set(go_on), (2,))

    async def work() -> list[str]:
        first = asyncio.create_task(text_of(model, max_new_tokens=4, **ENDLESS))
        await until(lambda: step.calls == 2)
        second = asyncio.create_task(text_of(model, max_new_tokens=4, **ENDLESS))
        await until(lambda: num_orders(model) == 1)
        go_on.set()
        return await asyncio.gather(first, second)

    with hooked(model, step):
        first, second = run(work())
    assert first == second


def test_steps_wait_for_no_reader(model: FastPromptModel) -> None:
    """One that reads a piece and then nothing until the request has left the engine finds all of it."""
    whole = model.generate("привет", "short", **LONG)[0].text

    async def work() -> str:
        pieces = model.astream("привет", "short", **LONG)
        first = await anext(pieces)
        await until(lambda: counts(model)["running"] == 0)
        return "".join([first, *[piece async for piece in pieces]])

    assert run(work()) == whole


def test_a_thousand_streams_in_two_event_loops_beside_threads(model: FastPromptModel) -> None:
    expected = {request: model.generate(*request, max_new_tokens=3, **ENDLESS)[0] for request in REQUESTS[:2]}
    texts = {request: output.text for request, output in expected.items()}

    async def work() -> list[str]:
        return await asyncio.gather(*[text_of(model, *request, max_new_tokens=3, **ENDLESS) for request in texts])

    async def many() -> None:
        assert await asyncio.gather(*[work() for _ in range(250)]) == [list(texts.values())] * 250

    def generate() -> None:
        for _ in range(20):
            for request, output in expected.items():
                assert model.generate(*request, max_new_tokens=3, **ENDLESS) == [output]
                assert "".join(model.stream(*request, max_new_tokens=3, **ENDLESS)) == output.text

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(run, many()), pool.submit(run, many()), pool.submit(generate)]:
            done.result(HANG_SECONDS)


# requests that end early


def test_a_cancelled_task_cancels_its_requests_before_the_next_step(model: FastPromptModel) -> None:
    """The third step is the last one: it ends after the tasks have."""
    cancelled = threading.Event()
    step = Fault(lambda: wait_until_set(cancelled), (3,))

    async def work() -> None:
        tasks = [
            asyncio.create_task(text_of(model, **LONG)),
            asyncio.create_task(model.agenerate(["да", "нет"], "short", **LONG)),
        ]
        await until(lambda: step.calls == 3)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert all(task.cancelled() for task in tasks)
        cancelled.set()
        await until(lambda: counts(model)["running"] == 0)

    with hooked(model, step), hooked(model, together(model)):
        run(work())
        assert step.calls == 3


def test_one_that_is_cancelled_before_it_is_taken_in(model: FastPromptModel) -> None:
    go_on = threading.Event()
    step = Fault(lambda: wait_until_set(go_on), (1,))

    async def work() -> str:
        first = asyncio.create_task(text_of(model, max_new_tokens=4, **ENDLESS))
        await until(lambda: step.calls == 1)
        second = asyncio.create_task(text_of(model, "да", **LONG))
        await until(lambda: num_orders(model) == 1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        go_on.set()
        return await first

    with hooked(model, step):
        assert run(work())
        assert step.calls < 20


def test_a_reader_that_goes_away(model: FastPromptModel) -> None:
    async def work() -> None:
        unread = model.astream("да", **LONG)
        await unread.aclose()
        pieces = model.astream("привет", "short", **LONG)
        await anext(pieces)
        await pieces.aclose()
        await until(lambda: counts(model)["running"] == 0)
        with pytest.raises(StopAsyncIteration):
            await anext(pieces)

    run(work())


def test_an_event_loop_that_is_closed_in_the_midst(model: FastPromptModel) -> None:
    """Its requests leave at the next step that brings something for them; nothing is run for nobody."""
    event_loop = asyncio.new_event_loop()
    closed = threading.Event()
    step = Fault(lambda: wait_until_set(closed), (50,))
    pieces = model.astream("привет", "short", **LONG)
    with hooked(model, step):
        event_loop.run_until_complete(anext(pieces))
        event_loop.close()
        closed.set()
        wait_for(lambda: counts(model)["running"] == 0)
        assert step.calls < 100
    with pytest.raises(StopIteration):  # it closes all the same
        pieces.aclose().send(None)


def test_an_event_loop_that_is_closed_before_its_news_are_read(model: FastPromptModel) -> None:
    """Nothing is kept of its calls, although they have been woken."""
    event_loop = asyncio.new_event_loop()

    async def submit() -> engine_thread.Call:
        return submitted(model, lambda: True)

    call = event_loop.run_until_complete(submit())
    wait_for(lambda: call.is_told)
    event_loop.close()
    model.generate("да", "short", max_new_tokens=2)
    assert call.is_closed
    assert model.engine_thread._calls._calls == []


def test_tasks_cancelled_at_any_moment(model: FastPromptModel) -> None:
    expected = model.generate("да", "short", max_new_tokens=30, **ENDLESS)[0].text

    async def work() -> None:
        for turns in range(0, 400, 10):
            tasks = [asyncio.create_task(text_of(model, "да", max_new_tokens=30, **ENDLESS)) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks[1:]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert done[0] == expected

    run(work())


# errors


def test_what_does_not_fit_is_refused() -> None:
    model = serve(num_pages=4)
    with model.engine_thread:
        long = "слово " * 12
        works = [text_of(model, long, None, max_new_tokens=20), model.agenerate(long, max_new_tokens=20)]
        run(all_raise(works, CapacityError, "can never run"))
        assert run(text_of(model, "да", None, max_new_tokens=4, **ENDLESS))
        assert_nothing_left(model)


def test_wrong_arguments_are_refused(model: FastPromptModel) -> None:
    for make in (model.astream, model.agenerate):

        async def use(make: Any = make, **arguments: Any) -> None:
            made = make("привет", **arguments)
            await (anext(made) if hasattr(made, "asend") else made)

        run(raised(use(prompt="joke"), UnknownPromptError, "joke"))
        run(raised(use(max_new_tokens=0), SettingError, "max_new_tokens"))
    run(raised(text_of(model, num_beams=2), SettingError, "num_beams"))


def test_a_step_that_fails_fails_its_requests(model: FastPromptModel) -> None:
    with hooked(model, Fault(RuntimeError("broken"), (5,))), hooked(model, together(model)):
        run(all_raise([text_of(model, **LONG), model.agenerate("да", **LONG)], EngineStepError, "broken"))
    assert run(text_of(model, max_new_tokens=4, **ENDLESS))


def test_a_loop_that_fails_fails_all(model: FastPromptModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is raised outside the engine's own care, as for want of memory."""

    async def work() -> None:
        current = model._dispatcher._current
        works = [text_of(model, **LONG), text_of(model, **LONG)]
        tasks = [asyncio.create_task(raised(each, EngineStepError, "no memory")) for each in works]
        await until(lambda: counts(model)["running"] == 2)

        def fail(*arguments: Any) -> bool:
            monkeypatch.undo()
            raise MemoryError("no memory")

        monkeypatch.setattr(current.engine, "step", fail)
        await asyncio.gather(*tasks)

    go_on = threading.Event()
    with hooked(model, Fault(lambda: wait_for(lambda: num_orders(model) >= 1 or go_on.is_set()), (1,))):
        run(work())
    assert run(text_of(model, max_new_tokens=4, **ENDLESS))


def test_news_that_cannot_be_asked_for(model: FastPromptModel) -> None:
    """The call is told why; the others go on."""
    expected = model.generate("привет", "short", **LONG)[0].text

    def fail() -> bool:
        raise ZeroDivisionError("of one call's news")

    async def work() -> None:
        task = asyncio.create_task(text_of(model, **LONG))
        call = submitted(model, fail)
        await raised(call.news(), ZeroDivisionError, "one call's news")
        call.close()
        assert await task == expected

    run(work())


def test_a_model_that_is_changed_meanwhile() -> None:
    model = serve()
    with model.engine_thread:
        old = model.generate("привет", "short", max_new_tokens=8, **ENDLESS)[0].text

        def change() -> None:
            with torch.no_grad():
                model.model.get_input_embeddings().weight.mul_(-1.5)

        async def work() -> str:
            with hooked(model, Fault(change, (5,))), hooked(model, together(model)):
                await all_raise([text_of(model, **LONG), model.agenerate("да", **LONG)], ModelChangedError, "changed")
            return await text_of(model, max_new_tokens=8, **ENDLESS)

        new = run(work())
        assert new == model.generate("привет", "short", max_new_tokens=8, **ENDLESS)[0].text != old
        assert_nothing_left(model)


def test_a_model_that_is_detached_meanwhile() -> None:
    model = serve()
    with model.engine_thread:

        async def work() -> None:
            waits = Fault(lambda: wait_for(lambda: num_orders(model) >= 1), (3,))
            with hooked(model, waits):
                works = [text_of(model, **LONG), model.agenerate("да", **LONG)]
                tasks = [asyncio.create_task(raised(each, DetachedModelError, "detached")) for each in works]
                await until(lambda: waits.calls >= 3)
                await asyncio.to_thread(model.detach)
                await asyncio.gather(*tasks)
            await raised(text_of(model), DetachedModelError, "detached")

        run(work())


def test_prompts_come_and_go_meanwhile(model: FastPromptModel) -> None:
    prompts = [model.prompts["short"], model.prompts["around"]]
    texts = []
    for prompt in prompts:
        model.add_prompt("changing", prompt)
        texts.append(model.generate("привет", "changing", max_new_tokens=8, **ENDLESS)[0].text)
    assert texts[0] != texts[1]

    async def request() -> str | None:
        try:
            return await text_of(model, "привет", "changing", max_new_tokens=8, **ENDLESS)
        except UnknownPromptError:
            return None

    async def work() -> None:
        for turn in range(20):
            requests = [asyncio.create_task(request()) for _ in range(4)]
            await asyncio.to_thread(model.add_prompt, "changing", prompts[turn % 2])
            assert await request() == texts[turn % 2]
            if turn % 3 == 0:
                await asyncio.to_thread(model.remove_prompt, "changing")
            assert set(await asyncio.gather(*requests)) <= {*texts, None}
            await asyncio.to_thread(model.check_integrity)

    run(work())
    model.add_prompt("changing", prompts[0])
    model.remove_prompt("changing")


# start and stop


def test_start_and_stop(served: FastPromptModel) -> None:
    thread = served.engine_thread
    assert not thread.is_running
    thread.start()
    with pytest.raises(SettingError, match="runs already"):
        thread.start()
    assert thread.is_running
    thread.stop()
    thread.stop()
    assert not thread.is_running

    async def work() -> str:
        async with served.engine_thread as found:
            assert found.is_running
            text = await text_of(served, max_new_tokens=5, **ENDLESS)
        assert not found.is_running
        assert text == await text_of(served, max_new_tokens=5, **ENDLESS)
        return text

    assert run(work()) == served.generate("привет", "short", max_new_tokens=5, **ENDLESS)[0].text


def test_a_start_that_is_cancelled_leaves_nothing_running(served: FastPromptModel) -> None:
    async def use() -> None:
        async with served.engine_thread:
            pytest.fail("it was cancelled before")

    async def work(is_running: bool) -> None:
        task = asyncio.create_task(use())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert served.engine_thread.is_running is is_running

    run(work(is_running=False))
    with served.engine_thread:  # what another has started is not stopped
        run(work(is_running=True))


def test_what_runs_when_it_stops_fails(served: FastPromptModel) -> None:
    """What a thread asked for goes on."""
    expected = served.generate("привет", "short", **LONG)
    found: list[object] = []

    async def work() -> None:
        async with served.engine_thread:
            works = [text_of(served, **LONG), served.agenerate("да", **LONG)]
            tasks = [asyncio.create_task(raised(each, EngineStepError, "stopped")) for each in works]
            await until(lambda: waits.calls >= 5)
        await asyncio.gather(*tasks)

    waits = Fault(lambda: waits.calls < 5 or wait_for(lambda: num_orders(served) >= 1 or found), (5,))
    with hooked(served, waits):
        thread = threading.Thread(target=lambda: found.append(served.generate("привет", "short", **LONG)))
        thread.start()
        run(work())
        join_all([thread])
    assert found == [expected]
    assert_nothing_left(served)


def test_one_that_comes_too_late(served: FastPromptModel) -> None:
    """It was read while the thread ran, and comes to the engine after it has stopped."""

    async def work() -> None:
        pieces = served._dispatcher._current.astream(served.engine_thread, task.request, task.params())
        await raised(anext(pieces), EngineStepError, "stopped")

    task = served._calls.streamed_task("да", None, None, *split_extras({}))
    run(work())
    assert_nothing_left(served)


def test_a_model_that_nobody_holds_is_gone_at_once() -> None:
    model = serve()
    with model.engine_thread:
        run(text_of(model, max_new_tokens=5, **ENDLESS))
        run(model.agenerate("да", max_new_tokens=5))
    reference = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del model
        wait_for(lambda: reference() is None)
    finally:
        gc.enable()


# what may happen to threads and programs


def test_a_lost_thread_is_replaced(model: FastPromptModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends in the midst of work, and the one that is to take its place never runs."""
    expected = model.generate("привет", "short", **LONG)[0].text
    loop = model._dispatcher._loop
    monkeypatch.setattr(engine_thread, "LOOK_AGAIN_SECONDS", 0.01)

    advance, begun = loop.advance, threading.Event()

    def advance_and_end(*arguments: Any) -> bool:
        goes_on = advance(*arguments)
        loop.is_stale = True
        return goes_on

    async def work() -> str:
        pieces = model.astream("привет", "short", **LONG)
        first = await anext(pieces)
        monkeypatch.setattr(loop, "start", lambda: None)
        monkeypatch.setattr(loop, "advance", advance_and_end)
        begun.set()
        await until(lambda: not loop._running.locked())
        assert counts_now()["running"] == 1
        monkeypatch.delattr(loop, "advance")
        monkeypatch.delattr(loop, "start")
        return "".join([first, *[piece async for piece in pieces]])

    def counts_now() -> dict[str, int]:
        return dict(model._dispatcher._current.engine._scheduler.stats())

    waits = Fault(lambda: wait_until_set(begun), (50,))
    with hooked(model, waits):
        assert run(work()) == expected


def test_a_wake_up_that_an_interrupt_takes_away(model: FastPromptModel, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = model.generate("привет", "short", max_new_tokens=20, **ENDLESS)[0].text
    monkeypatch.setattr(engine_thread, "LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(engine_thread, "_wake", lambda calls: None)
    assert run(text_of(model, max_new_tokens=20, **ENDLESS)) == expected


def test_a_program_that_ends_meanwhile(model: FastPromptModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as a coroutine on a daemon's event loop lives to see it."""
    monkeypatch.setattr(engine_thread, "LOOK_AGAIN_SECONDS", 0.01)

    async def work() -> None:
        pieces = model.astream("привет", "short", **LONG)
        await anext(pieces)
        monkeypatch.setattr(threads._PROGRAM, "is_ending", True)
        await all_raise([text_of(model), model.agenerate("да")], EngineStepError, "ending")

        async def read() -> None:
            async for _ in pieces:
                pass

        await raised(read(), EngineStepError, "ending")

    end = Fault(lambda: wait_for(lambda: threads._PROGRAM.is_ending), (50,))
    with hooked(model, end):
        run(work())
    monkeypatch.undo()


DAEMON_LOOP = """
import asyncio

async def read():
    async for piece in model.astream("да", max_new_tokens=100, **ENDLESS):
        pass

async def forever():
    while True:
        await asyncio.gather(*[read() for _ in range(4)], return_exceptions=True)

model.engine_thread.start()
threading.Thread(target=lambda: asyncio.run(forever()), daemon=True).start()
wait_for(lambda: slow.calls > 10)
"""

INTERRUPTED_LOOP = """
import asyncio

def interrupt():
    wait_for(lambda: slow.calls > 5)
    for _ in range(4):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.05)

async def work():
    async with model.engine_thread:
        await asyncio.gather(*[model.agenerate("да", max_new_tokens=100, **ENDLESS) for _ in range(4)])

threading.Thread(target=interrupt, daemon=True).start()
while True:
    asyncio.run(work())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("program", "codes"), [(DAEMON_LOOP, (0,)), (INTERRUPTED_LOOP, (1, 130, -2))])
def test_a_program_ends_in_the_midst_of_work(program: str, codes: tuple[int, ...]) -> None:
    assert code_of(program) in codes


def test_a_forked_process_is_refused(model: FastPromptModel) -> None:
    child = os.fork()
    if child == 0:
        try:
            run(all_raise([text_of(model), model.agenerate("да")], DeadlockError, "spawn"))
            for use in (model.engine_thread.start, model.engine_thread.stop):
                with pytest.raises(DeadlockError, match="spawn"):
                    use()
            os._exit(0)
        finally:
            os._exit(1)
    assert exit_code_of(child) == 0
    assert run(text_of(model, max_new_tokens=3, **ENDLESS))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio.run takes no care of interrupts")
@pytest.mark.skipif(
    threading.current_thread() is not threading.main_thread(), reason="signals reach the main thread only"
)
def test_interrupts_leave_nothing_half_done(served: FastPromptModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end what the main thread's event loop runs, at any moment; another one's streams have their texts."""
    monkeypatch.setattr(logging.getLogger("asyncio"), "disabled", True)  # it tells of tasks that are lost
    expected = served.generate("привет", "short", max_new_tokens=12, **ENDLESS)[0].text
    stop = threading.Event()
    problems: list[object] = []

    async def others() -> None:
        while not stop.is_set():
            found = await asyncio.gather(*[text_of(served, max_new_tokens=12, **ENDLESS) for _ in range(3)])
            if found != [expected] * 3:
                problems.append(found)

    async def work(seconds: float) -> None:
        signal.setitimer(signal.ITIMER_REAL, seconds)
        try:
            await asyncio.gather(text_of(served, **LONG), served.agenerate(INPUTS, NAMES, max_new_tokens=60, **ENDLESS))
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def meets(seconds: float) -> bool:
        try:
            asyncio.run(work(seconds))
        except KeyboardInterrupt:
            return True
        return False

    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    with served.engine_thread, Bystander(served) as bystander:
        thread = threading.Thread(target=lambda: run(others()))
        thread.start()
        hits = sum(meets(0.001 * (1 + turn % 40)) for turn in range(60))
        signal.signal(signal.SIGALRM, before)
        stop.set()
        join_all([thread])
        wait_for(lambda: bystander.problems or bystander.rounds > 0)
    assert hits > 30
    assert problems == bystander.problems == []
    wait_for(lambda: counts(served)["running"] == 0)
    assert_nothing_left(served)
    assert run(text_of(served, max_new_tokens=12, **ENDLESS)) == expected
    gc.collect()  # the tasks that are lost, while nobody is told


def test_steps_compute_on_the_threads_of_the_event_loops_thread(model: FastPromptModel) -> None:
    found: list[int] = []

    def work() -> None:
        torch.set_num_threads(1)
        with hooked(model, Fault(lambda: found.append(torch.get_num_threads()))):
            run(text_of(model, max_new_tokens=4, **ENDLESS))

    before = torch.get_num_threads()
    thread = threading.Thread(target=work)
    thread.start()
    join_all([thread])
    torch.set_num_threads(before)
    assert set(found) == {1}
