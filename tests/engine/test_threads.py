"""Many threads on one model: their requests share steps, and nobody's text changes."""

from __future__ import annotations

import gc
import random
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
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
from patience import HANG_SECONDS, join_all, wait_for

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import UnknownPromptError

SETTINGS = [
    ENDLESS,
    {"do_sample": True, "seed": 11, "temperature": 1.5, "eos_token_id": None},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "seed": 4, "num_return_sequences": 3, "eos_token_id": None},
]


@pytest.fixture(scope="module")
def model() -> FastPromptModel:
    return serve()


def test_generate_stream_and_classify_at_once(model: FastPromptModel) -> None:
    calls = [(index, setting) for index in range(len(REQUESTS)) for setting in range(len(SETTINGS))]

    def generate(index: int, setting: int) -> object:
        text, name = REQUESTS[index]
        return [output.token_ids for output in model.generate(text, name, max_new_tokens=10, **SETTINGS[setting])]

    def stream(index: int, setting: int) -> object:
        text, name = REQUESTS[index]
        return "".join(model.stream(text, name, max_new_tokens=10, **SETTINGS[setting % 2]))

    def classify(index: int, setting: int) -> object:
        text, name = REQUESTS[index]
        return model.classify(text, name, labels=["да", "нет", "может быть"])[0].label

    work = [(call, *arguments) for arguments in calls for call in (generate, stream, classify)]
    random.Random(0).shuffle(work)
    alone = [call(index, setting) for call, index, setting in work]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda item: item[0](*item[1:]), work))
    assert together == alone
    assert_nothing_left(model)


def test_requests_of_different_threads_share_steps(model: FastPromptModel) -> None:
    before = counts(model)
    alone = model.generate("да", max_new_tokens=60, **ENDLESS)[0]
    steps_alone = counts(model)["steps"] - before["steps"]
    assert steps_alone >= 60

    def work(index: int) -> str:
        return model.generate("да", max_new_tokens=60, **ENDLESS)[0].text

    before = counts(model)
    first_step = Fault(lambda: wait_for(lambda: num_orders(model) >= 7), (1,))
    with hooked(model, first_step), ThreadPoolExecutor(8) as pool:
        results = [pool.submit(work, 0)]
        wait_for(lambda: first_step.calls > 0)
        results += [pool.submit(work, index) for index in range(1, 8)]
        assert [result.result() for result in results] == [alone.text] * 8
    assert counts(model)["steps"] - before["steps"] <= steps_alone + 4


def test_a_thread_returns_when_its_own_request_is_done(model: FastPromptModel) -> None:
    """The short ones arrive during the long one's first step, and are gone before its sixtieth."""
    finished: list[str] = []

    def work(name: str, length: int) -> None:
        model.generate("привет", max_new_tokens=length, **ENDLESS)
        finished.append(name)

    arrive = Fault(lambda: wait_for(lambda: num_orders(model) >= 3), (1,))
    leave = Fault(lambda: wait_for(lambda: len(finished) == 3), (60,))
    with hooked(model, arrive), hooked(model, leave):
        threads = [threading.Thread(target=work, args=("long", 115))]
        threads[0].start()
        wait_for(lambda: arrive.calls > 0)
        threads += [threading.Thread(target=work, args=("short", 3)) for _ in range(3)]
        for thread in threads[1:]:
            thread.start()
        join_all(threads)
    assert finished == ["short"] * 3 + ["long"]


def test_a_paused_stream_blocks_nobody(model: FastPromptModel) -> None:
    whole = model.generate("привет", "short", max_new_tokens=100, **ENDLESS)[0].text
    stream = model.stream("привет", "short", max_new_tokens=100, **ENDLESS)
    pieces = [next(stream), next(stream)]
    expected = serve().generate(INPUTS, NAMES, max_new_tokens=8)

    def work(index: int) -> object:
        return model.generate(INPUTS, NAMES, max_new_tokens=8)

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, range(3), timeout=HANG_SECONDS)) == [expected] * 3
    assert "".join([*pieces, *stream]) == whole


def test_streams_read_in_turn_by_one_thread(model: FastPromptModel) -> None:
    expected = [output.text for output in model.generate(INPUTS, NAMES, max_new_tokens=20, **ENDLESS)]
    before = counts(model)["steps"]
    streams = [model.stream(text, name, max_new_tokens=20, **ENDLESS) for text, name in REQUESTS]
    found = [""] * len(streams)
    reading = set(range(len(streams)))
    while reading:
        for index in sorted(reading):
            piece = next(streams[index], None)
            if piece is None:
                reading.remove(index)
            else:
                found[index] += piece
    assert found == expected
    assert counts(model)["steps"] - before < 60


def test_prompts_come_and_go_meanwhile() -> None:
    """A request keeps the prompt that it began with; a replaced one never serves the old keys."""
    model = serve()
    short, around = model.prompts["short"], model.prompts["around"]
    by_prompt = {}
    for name, prompt in (("short", short), ("around", around)):
        model.add_prompt("changing", prompt)
        by_prompt[name] = model.generate("привет", "changing", max_new_tokens=8, **ENDLESS)[0].token_ids
    assert by_prompt["short"] != by_prompt["around"]
    fixed = model.generate(INPUTS, NAMES, max_new_tokens=8)
    stop = threading.Event()
    problems: list[object] = []

    def request() -> None:
        while not stop.is_set():
            try:
                found = model.generate("привет", "changing", max_new_tokens=8, **ENDLESS)[0].token_ids
                if found not in by_prompt.values():
                    problems.append(found)
            except UnknownPromptError:  # noqa: PERF203  (a prompt may be gone at any time)
                pass

    def serve_others() -> None:
        while not stop.is_set():
            if model.generate(INPUTS, NAMES, max_new_tokens=8) != fixed:
                problems.append("other")

    threads = [threading.Thread(target=target) for target in (request, request, serve_others)]
    for thread in threads:
        thread.start()
    for count in range(1, 25):
        name, prompt = (("short", short), ("around", around))[count % 2]
        model.add_prompt("changing", prompt)
        assert model.generate("привет", "changing", max_new_tokens=8, **ENDLESS)[0].token_ids == by_prompt[name]
        if count % 3 == 0:
            model.remove_prompt("changing")
        if count % 4 == 0:
            model.warm_up(["short"])
        model.check_integrity()
    stop.set()
    join_all(threads)
    assert problems == []
    assert_nothing_left(model)


def test_removing_a_prompt_in_use_frees_its_pages_afterwards() -> None:
    model = serve()
    model.add_prompt("passing", model.prompts["fields"])
    item = {"question": "где", "answer": "тут"}
    expected = model.generate(item, "passing", max_new_tokens=12, **ENDLESS)[0].text
    stream = model.stream(item, "passing", max_new_tokens=12, **ENDLESS)
    first = next(stream)
    model.remove_prompt("passing")
    model.check_integrity()
    assert "".join([first, *stream]) == expected
    with pytest.raises(UnknownPromptError):
        model.generate(item, "passing")
    assert_nothing_left(model)
    model.remove_prompt("fields")
    stats = model.stats().engine
    assert stats is not None
    assert stats.prefix_cache.entries <= len(model.prompts)
    assert_nothing_left(model)


def test_warm_up_from_many_threads() -> None:
    model = serve()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: model.warm_up(), range(4)))
    assert counts(model)["prefix_misses"] == 0
    assert counts(model)["resident_prefixes"] == len(model.prompts)
    assert model.generate(INPUTS, NAMES, max_new_tokens=8) == serve().generate(INPUTS, NAMES, max_new_tokens=8)
    assert_nothing_left(model)


def test_a_model_that_nobody_holds_is_gone_at_once() -> None:
    """Its pages with it: neither a cycle nor the engine's thread keeps them."""
    model = serve()
    model.generate("да", "short", max_new_tokens=3)
    model.generate("да", "short", max_new_tokens=3, prompt_lookup_num_tokens=2)
    stream = model.stream("да", max_new_tokens=30)
    next(stream)
    reference = weakref.ref(model)
    gc.collect()
    gc.disable()
    try:
        del stream, model
        wait_for(lambda: reference() is None)
    finally:
        gc.enable()


def test_both_paths_at_once(model: FastPromptModel) -> None:
    """The transformers fallback and the engine take turns on one model."""
    by_engine = model.generate("привет", "short", max_new_tokens=10, **ENDLESS)
    fallback = {"prompt_lookup_num_tokens": 2, **ENDLESS}

    def work(index: int) -> object:
        settings = fallback if index % 2 else ENDLESS
        return model.generate("привет", "short", max_new_tokens=10, **settings)[0].token_ids

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(work, range(8))) == [by_engine[0].token_ids] * 8
