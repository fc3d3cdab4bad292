"""Streams: the pieces add up to generate's text, and closing one cancels its request."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from engine.engine_cases import ENDLESS, Fault, assert_nothing_left, block, counts, hooked, num_orders, serve
from patience import join_all, wait_for, wait_until_set

from ruprompt_fast import FastPromptModel, bundled, errors

BEGINNINGS = [("Без труда", "proverb"), ("Я помню", "verse"), ("Иван Иванович", "gogol"), ("Вечером", None)]
SAMPLED = {"do_sample": True, "temperature": 1.3, "seed": 5}
PATHS = {"engine": {}, "fallback": {"prompt_lookup_num_tokens": 2}}
on_each_path = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


@pytest.fixture(scope="module")
def russian() -> FastPromptModel:
    return bundled.load()


@pytest.fixture(scope="module")
def model(backend: str) -> FastPromptModel:
    return serve()


@pytest.fixture(scope="module")
def translator() -> FastPromptModel:
    """An encoder-decoder model: it takes the transformers fallback."""
    served = serve("t5")
    assert served.stats().path == "fallback"
    return served


@pytest.mark.parametrize("settings", [{"do_sample": False}, SAMPLED, {**SAMPLED, "top_p": 0.9, "seed": 6}])
@pytest.mark.parametrize(("text", "prompt"), BEGINNINGS)
def test_pieces_add_up(russian: FastPromptModel, text: str, prompt: str | None, settings: dict[str, Any]) -> None:
    pieces = list(russian.stream(text, prompt, max_new_tokens=30, **settings))
    whole = russian.generate(text, prompt, max_new_tokens=30, **settings)[0].text
    assert "".join(pieces) == whole
    assert len(pieces) > 2
    assert not any("\N{REPLACEMENT CHARACTER}" in piece for piece in pieces)
    assert all(pieces)


def test_letters_of_many_bytes_come_whole(russian: FastPromptModel) -> None:
    """The model is made to write tokens that are halves of letters."""
    tokenizer = russian.tokenizer
    halves = [index for index in range(len(tokenizer)) if "\N{REPLACEMENT CHARACTER}" in tokenizer.decode([index])]
    settings = {"max_new_tokens": 40, "logit_bias": dict.fromkeys(halves, 6.0), **SAMPLED}
    split = 0
    for seed in range(4):
        settings["seed"] = seed
        output = russian.generate("Ещё", **settings)[0]
        pieces = list(russian.stream("Ещё", **settings))
        assert "".join(pieces) == output.text
        split += sum(token in halves for token in output.token_ids)
        for end in range(1, len(pieces)):
            assert output.text.startswith("".join(pieces[:end]))
    assert split > 10


@on_each_path
def test_stop_strings_across_tokens(russian: FastPromptModel, path: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 30, "do_sample": False, **path}
    whole = russian.generate("Вечером", **settings)[0]
    pieces = list(russian.stream("Вечером", **settings))
    starts = [len("".join(pieces[:count])) for count in range(4, 8)]
    for border in starts:
        stop = whole.text[border - 2 : border + 2]
        output = russian.generate("Вечером", stop_strings=[stop], **settings)[0]
        assert output.finish_reason == "stop"
        assert stop in output.text
        assert len(output.token_ids) < len(whole.token_ids)
        assert "".join(russian.stream("Вечером", stop_strings=stop, **settings)) == output.text


@pytest.mark.every_backend
def test_both_paths_write_the_same(model: FastPromptModel) -> None:
    settings = {"max_new_tokens": 20, **ENDLESS}
    by_path = ["".join(model.stream("привет", "short", **settings, **path)) for path in PATHS.values()]
    assert by_path[0] == by_path[1] == model.generate("привет", "short", max_new_tokens=20, **ENDLESS)[0].text


@pytest.mark.parametrize("settings", [ENDLESS, SAMPLED], ids=["greedy", "sampled"])
def test_an_encoder_decoder_streams(translator: FastPromptModel, settings: dict[str, Any]) -> None:
    pieces = list(translator.stream("привет", "short", max_new_tokens=12, **settings))
    assert "".join(pieces) == translator.generate("привет", "short", max_new_tokens=12, **settings)[0].text


@pytest.mark.every_backend
def test_closing_cancels_the_request(model: FastPromptModel) -> None:
    stream = model.stream("привет", "short", max_new_tokens=100, **ENDLESS)
    next(stream)
    assert counts(model)["running"] == 1
    stream.close()
    assert counts(model)["running"] == 0
    assert list(stream) == []
    assert_nothing_left(model)
    for piece in model.stream("привет", "short", max_new_tokens=100, **ENDLESS):
        assert piece
        break
    assert counts(model)["running"] == 0


@pytest.mark.every_backend
def test_a_stream_read_to_its_end_leaves_nothing(model: FastPromptModel) -> None:
    stream = model.stream("привет", max_new_tokens=5, **ENDLESS)
    list(stream)
    assert next(stream, None) is None
    assert_nothing_left(model)


@pytest.mark.parametrize("which", ["setting", "encoder-decoder"])
def test_closing_on_the_fallback(model: FastPromptModel, translator: FastPromptModel, which: str) -> None:
    served, path = (model, PATHS["fallback"]) if which == "setting" else (translator, {})
    closed = threading.Event()
    calls = Fault(lambda: calls.calls < 20 or wait_until_set(closed))
    with hooked(served, calls):
        stream = served.stream("привет", max_new_tokens=100, suppress_tokens=[0, 1, 2, 3], **ENDLESS, **path)
        assert calls.calls == 0  # nothing runs before the first piece is asked for
        next(stream)
        stream.close()
        closed.set()
        assert served.generate("привет", max_new_tokens=3, **path)  # gets the engine lock after the last token
        assert calls.calls <= 20 + 3
    assert served.generate("привет", max_new_tokens=3)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt("broken")], ids=["error", "interrupt"])
def test_an_error_in_the_fallbacks_thread_surfaces(translator: FastPromptModel, error: BaseException) -> None:
    expected = translator.generate("привет", max_new_tokens=8, **ENDLESS)
    for at in (1, 3):
        with hooked(translator, Fault(error, (at,))), pytest.raises(type(error), match="broken"):
            list(translator.stream("привет", max_new_tokens=8, suppress_tokens=[0, 1, 2, 3], **ENDLESS))
    assert translator.generate("привет", max_new_tokens=8, **ENDLESS) == expected


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"prompt": "joke"}, errors.UnknownPromptError, "joke"),
    ({"max_new_token": 5}, errors.UnknownArgumentError, "max_new_tokens"),
    ({"max_new_tokens": 0}, errors.SettingError, "max_new_tokens"),
    ({"max_new_tokens": 500}, errors.ContextLengthError, "128"),
    ({"num_beams": 2}, errors.SettingError, "num_beams"),
    ({"do_sample": True, "num_return_sequences": 2}, errors.SettingError, "num_return_sequences"),
    ({"seed": -1}, errors.SettingError, "seed"),
    ({"temperature": -1.0, "do_sample": True}, errors.SettingError, "temperature"),
    ({"prompt_lookup_num_tokens": 2, "presence_penalty": 1.0}, errors.SettingError, "prompt_lookup_num_tokens"),
    ({"input": {"words": "а"}}, errors.MissingFieldError, "text"),
    ({"input": 7}, errors.FieldTypeError, "int"),
]


@pytest.mark.parametrize(("arguments", "error", "match"), WRONG, ids=lambda value: str(value)[:40])
def test_wrong_arguments_are_refused_before_the_first_piece(
    model: FastPromptModel, arguments: dict[str, Any], error: type[Exception], match: str
) -> None:
    call = {"input": "привет", **arguments}
    with pytest.raises(error, match=match):
        model.stream(**call)
    assert_nothing_left(model)

    async def read() -> None:
        async for _ in model.astream(**call):
            pytest.fail("a piece")

    with pytest.raises(error, match=match):
        asyncio.run(read())


# asyncio


async def collect(model: FastPromptModel, text: str, prompt: str | None, **settings: Any) -> list[str]:
    return [piece async for piece in model.astream(text, prompt, **settings)]


@pytest.mark.every_backend
@on_each_path
def test_async_pieces_add_up(model: FastPromptModel, path: dict[str, Any]) -> None:
    settings = {"max_new_tokens": 20, **ENDLESS, **path}
    names = ["short", "around", None, "bare"] * 3

    async def run() -> list[list[str]]:
        return await asyncio.gather(*[collect(model, "привет", name, **settings) for name in names])

    expected = [output.text for output in model.generate(["привет"] * len(names), names, **settings)]
    assert ["".join(pieces) for pieces in asyncio.run(run())] == expected
    assert_nothing_left(model)


@pytest.mark.every_backend
def test_async_streams_share_steps(model: FastPromptModel) -> None:
    async def run() -> None:
        await asyncio.gather(*[collect(model, "привет", "short", max_new_tokens=50, **ENDLESS) for _ in range(4)])

    before = counts(model)["steps"]
    first_step = Fault(lambda: wait_for(lambda: num_orders(model) >= 4), (1,))
    with hooked(model, first_step):
        thread = threading.Thread(target=lambda: model.generate("да", max_new_tokens=1))
        thread.start()
        wait_for(lambda: first_step.calls > 0)
        asyncio.run(run())
        join_all([thread])
    assert counts(model)["steps"] - before < 120


def test_the_event_loop_stays_free(model: FastPromptModel) -> None:
    """No step, of this stream or of another thread's request, ends before the loop has ticked three times in it."""
    ticks = 0
    is_over = threading.Event()

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0.001)

    async def run() -> None:
        ticking = asyncio.create_task(tick())
        await collect(model, "привет", None, max_new_tokens=4, **ENDLESS)
        ticking.cancel()
        is_over.set()

    def last() -> None:
        end = ticks + 3
        wait_for(lambda: ticks >= end or is_over.is_set())

    steps = Fault(last)
    with hooked(model, steps):
        thread = threading.Thread(target=lambda: model.generate("да", max_new_tokens=4, **ENDLESS))
        thread.start()
        wait_for(lambda: steps.calls > 0)
        asyncio.run(run())
        join_all([thread])
    assert ticks >= 3 * 4


@on_each_path
def test_a_cancelled_task_cancels_its_request(model: FastPromptModel, path: dict[str, Any]) -> None:
    seen: list[str] = []

    async def read() -> None:
        async for piece in model.astream("привет", "short", max_new_tokens=100, **ENDLESS, **path):
            seen.append(piece)
            if len(seen) == 3:
                task = asyncio.current_task()
                assert task is not None
                task.cancel()  # takes effect where it waits for the next piece

    async def run() -> None:
        with pytest.raises(asyncio.CancelledError):
            await asyncio.create_task(read())

    asyncio.run(run())
    assert_nothing_left(model)
    assert len("".join(seen)) < 100


def test_tasks_cancelled_at_any_moment(model: FastPromptModel) -> None:
    async def run() -> None:
        for delay in range(25):
            tasks = [asyncio.create_task(collect(model, "да", "short", max_new_tokens=30, **ENDLESS)) for _ in range(3)]
            await asyncio.sleep(delay / 1000)
            for task in tasks[1:]:
                task.cancel()
            done = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(done[0], list)
            assert "".join(done[0]) == expected

    expected = model.generate("да", "short", max_new_tokens=30, **ENDLESS)[0].text
    asyncio.run(run())
    assert_nothing_left(model)


@on_each_path
def test_aclose_cancels_the_request(model: FastPromptModel, path: dict[str, Any]) -> None:
    async def run() -> None:
        unread = model.astream("да", max_new_tokens=10)
        await unread.aclose()
        pieces = model.astream("привет", "short", max_new_tokens=100, **ENDLESS, **path)
        await pieces.__anext__()
        await pieces.aclose()
        assert counts(model)["running"] == 0
        with pytest.raises(StopAsyncIteration):
            await pieces.__anext__()

    asyncio.run(run())
    assert_nothing_left(model)


@pytest.mark.every_backend
def test_an_error_reaches_the_task(model: FastPromptModel) -> None:
    with hooked(model, Fault(RuntimeError("broken"), (3,))), pytest.raises(errors.EngineStepError):
        asyncio.run(collect(model, "привет", None, max_new_tokens=20, **ENDLESS))
    assert_nothing_left(model)


@pytest.fixture(autouse=True)
def no_hooks_stay(model: FastPromptModel) -> Iterator[None]:
    yield
    assert len(block(model.model)._forward_pre_hooks) == 1  # the one of hooked()
