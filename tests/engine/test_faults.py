"""What fails, fails by name, takes nobody else along, and leaves no page behind."""

from __future__ import annotations

import gc
import random
import threading
from collections.abc import Iterator
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
    poison,
    serve,
)
from patience import wait_for, wait_until_set

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import CapacityError, DetachedModelError, EngineStepError, NonFiniteLogitsError

pytestmark = pytest.mark.every_backend


@pytest.fixture
def model() -> Iterator[FastPromptModel]:
    served = serve()
    yield served
    assert_nothing_left(served)


@pytest.fixture(scope="module")
def expected(backend: str) -> list[str]:
    """What the requests give on a model that nothing happens to."""
    return texts(serve())


def texts(model: FastPromptModel) -> list[str]:
    return [output.text for output in model.generate(INPUTS, NAMES, max_new_tokens=12, **ENDLESS)]


ERRORS = [RuntimeError("broken"), MemoryError("no memory"), ValueError("wrong"), KeyError("lost"), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at", [1, 2, 5])
def test_an_exception_in_a_step(model: FastPromptModel, expected: list[str], error: Exception, at: int) -> None:
    with hooked(model, Fault(error, (at,))), pytest.raises(EngineStepError, match=type(error).__name__) as caught:
        texts(model)
    assert caught.value.__cause__ is error
    assert_nothing_left(model)
    assert texts(model) == expected


def test_requests_that_wait_for_a_prefix_fail_with_it() -> None:
    """A step of 4 tokens computes nothing but the prefix while the requests wait."""
    model = serve(max_batch_size=4, max_step_tokens=4)
    with hooked(model, Fault(RuntimeError("broken"), (1,))), pytest.raises(EngineStepError) as caught:
        model.generate(["да", "нет"], "around", max_new_tokens=3)
    assert "broken" in str(caught.value.__cause__)
    assert_nothing_left(model)
    assert counts(model)["prefix_pages"] == 0
    assert model.generate("да", "around", max_new_tokens=12, **ENDLESS) == serve().generate(
        "да", "around", max_new_tokens=12, **ENDLESS
    )


def test_requests_outside_the_step_go_on() -> None:
    """Two sequences run at a time: the first two fail, the others have not begun."""
    model = serve(max_batch_size=2)
    alone = model.generate("нет", max_new_tokens=8, **ENDLESS)
    outcomes: dict[str, object] = {}

    def work(text: str) -> None:
        try:
            outcomes[text] = model.generate(text, max_new_tokens=8, **ENDLESS)
        except EngineStepError as error:
            outcomes[text] = error

    first = [model.stream(text, max_new_tokens=8, **ENDLESS) for text in ("да", "ну")]
    thread = threading.Thread(target=work, args=("нет",))
    fault = Fault(RuntimeError("broken"), (2,))
    with hooked(model, fault):
        thread.start()
        wait_for(lambda: fault.calls >= 2)
        thread.join()
    for stream in first:
        with pytest.raises(EngineStepError):
            list(stream)
    assert outcomes["нет"] == alone
    assert_nothing_left(model)


def test_a_stream_gives_its_pieces_before_the_error(model: FastPromptModel) -> None:
    whole = model.generate("привет", max_new_tokens=6, suppress_tokens=[0, 1, 2, 3], **ENDLESS)[0].text
    pieces: list[str] = []
    with hooked(model, Fault(RuntimeError("broken"), (4,))), pytest.raises(EngineStepError):
        pieces.extend(model.stream("привет", max_new_tokens=6, suppress_tokens=[0, 1, 2, 3], **ENDLESS))
    assert "".join(pieces) == whole[:3]


def test_classify_fails_by_name(model: FastPromptModel) -> None:
    expected = model.classify("привет", "short", labels=["да", "нет"])
    with hooked(model, Fault(RuntimeError("broken"))), pytest.raises(EngineStepError):
        model.classify("привет", "short", labels=["да", "нет"])
    assert model.classify("привет", "short", labels=["да", "нет"])[0].probabilities == pytest.approx(
        expected[0].probabilities, abs=1e-5
    )


def test_beams_and_samples_in_a_failing_step(model: FastPromptModel, expected: list[str]) -> None:
    """Steps in which sequences have been copied, shared their pages, and written to copies of them."""
    beams = model.generate(INPUTS, NAMES, num_beams=3, max_new_tokens=10)
    for at in range(1, 9):
        with hooked(model, Fault(RuntimeError("broken"), (at,))), pytest.raises(EngineStepError):
            model.generate(INPUTS, NAMES, num_beams=3, max_new_tokens=10)
        assert_nothing_left(model)
        with hooked(model, Fault(RuntimeError("broken"), (at,))), pytest.raises(EngineStepError):
            model.generate(INPUTS, NAMES, do_sample=True, num_return_sequences=4, max_new_tokens=10, eos_token_id=None)
        assert_nothing_left(model)
    assert model.generate(INPUTS, NAMES, num_beams=3, max_new_tokens=10) == beams
    assert texts(model) == expected


def test_a_failing_warm_up_says_so(model: FastPromptModel, expected: list[str]) -> None:
    with hooked(model, Fault(RuntimeError("broken"))), pytest.raises(EngineStepError, match="broken"):
        model.warm_up()
    model.check_integrity()
    model.warm_up()
    assert counts(model)["resident_prefixes"] == 4
    assert texts(model) == expected


def test_warm_up_does_not_wait_for_requests(model: FastPromptModel) -> None:
    stream = model.stream("привет", max_new_tokens=100, **ENDLESS)
    model.warm_up(["short"])
    assert counts(model)["running"] == 1
    list(stream)


@pytest.mark.parametrize("num_beams", [1, 3])
def test_logits_that_are_not_numbers_fail_their_request_only(model: FastPromptModel, num_beams: int) -> None:
    banned = model.tokenizer.convert_tokens_to_ids(["<pad>", "<s>", "</s>", "<unk>", "f"])
    settings = {"max_new_tokens": 12, "num_beams": num_beams, "suppress_tokens": banned, **ENDLESS}
    expected = [output.text for output in model.generate(INPUTS, NAMES, **settings)]
    outcomes: list[object] = [None] * (len(REQUESTS) + 1)

    def work(index: int) -> None:
        text, name = REQUESTS[index] if index < len(REQUESTS) else ("буква f", "short")
        try:
            outcomes[index] = model.generate(text, name, **settings)[0].text
        except NonFiniteLogitsError as error:
            outcomes[index] = error

    with hooked(model, poison(model, "f"), index=0):
        threads = [threading.Thread(target=work, args=(index,)) for index in reversed(range(len(outcomes)))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert isinstance(outcomes[-1], NonFiniteLogitsError)
    assert outcomes[:-1] == expected
    assert_nothing_left(model)
    # The pages that hold what is no number now go to others.
    assert [output.text for output in model.generate(INPUTS, NAMES, **settings)] == expected


def test_pages_of_a_poisoned_request_serve_others() -> None:
    model = serve(num_pages=4)
    settings = {"max_new_tokens": 20, **ENDLESS}
    expected = model.generate("привет", "short", **settings)
    with hooked(model, poison(model, "f"), index=0):
        for _ in range(3):
            with pytest.raises(NonFiniteLogitsError):
                model.generate("f" * 40, max_new_tokens=3)
    for _ in range(3):
        assert model.generate("привет", "short", **settings) == expected
    assert_nothing_left(model)


def test_too_small_a_pool_preempts_and_finishes(expected: list[str]) -> None:
    """Six requests want 18 pages; there are 5."""
    model = serve(num_pages=5)
    assert texts(model) == expected
    for _ in range(3):
        assert [
            output.text for output in model.generate(INPUTS * 2, NAMES * 2, max_new_tokens=12, **ENDLESS)
        ] == 2 * expected
        assert_nothing_left(model)
    long = model.generate(["да", "нет", "ну"], max_new_tokens=60, **ENDLESS)
    assert counts(model)["preemptions"] > 0
    assert long == serve().generate(["да", "нет", "ну"], max_new_tokens=60, **ENDLESS)
    assert_nothing_left(model)


def test_beams_and_samples_in_too_small_a_pool() -> None:
    model, roomy = serve(num_pages=12), serve()
    for settings in ({"num_beams": 3}, {"do_sample": True, "num_return_sequences": 3, "seed": 7, "eos_token_id": None}):
        found = model.generate(INPUTS, NAMES, max_new_tokens=20, **settings)
        assert found == roomy.generate(INPUTS, NAMES, max_new_tokens=20, **settings)
        assert_nothing_left(model)
    assert counts(model)["preemptions"] > 0


def test_faults_and_preemption_together() -> None:
    model = serve(num_pages=6, max_step_tokens=64)
    expected = texts(serve())
    chance = random.Random(3)
    failed = 0
    for _ in range(25):
        with hooked(model, Fault(RuntimeError("broken"), (chance.randrange(1, 120),))):
            try:
                assert texts(model) == expected
            except EngineStepError:
                failed += 1
        assert_nothing_left(model)
    assert 0 < failed < 25
    assert texts(model) == expected


@pytest.mark.parametrize("position", [0, 1, 2])
def test_what_can_never_fit_is_refused_with_the_numbers(position: int) -> None:
    model = serve(num_pages=3)
    calls = Fault(lambda: None)
    batch = ["да", "нет"]
    batch.insert(position, "слишком длинный текст " * 3)
    with hooked(model, calls), pytest.raises(CapacityError, match=f"there are {counts(model)['num_pages']}:"):
        model.generate(batch, max_new_tokens=4)
    assert calls.calls == 0
    assert counts(model)["steps"] == 0
    assert_nothing_left(model)
    assert model.generate("да", max_new_tokens=4)


def test_nothing_runs_on_either_path_if_one_request_does_not_fit() -> None:
    from transformers import GenerationConfig

    model = serve(num_pages=3)
    calls = Fault(lambda: None)
    configs = [GenerationConfig(prompt_lookup_num_tokens=2), GenerationConfig()]
    with hooked(model, calls), pytest.raises(CapacityError):
        model.generate(["да", "слишком длинный текст " * 3], generation_config=configs, max_new_tokens=4)
    assert calls.calls == 0


def test_a_stream_that_never_fits_is_refused_at_once() -> None:
    model = serve(num_pages=3)
    with pytest.raises(CapacityError):
        model.stream("слишком длинный текст " * 3, max_new_tokens=4)
    assert_nothing_left(model)


def test_streams_closed_at_random(model: FastPromptModel) -> None:
    expected = texts(model)
    chance = random.Random(1)
    for _ in range(12):
        streams = [
            model.stream(text, name, max_new_tokens=30, **ENDLESS)
            for text, name in chance.choices(REQUESTS, k=chance.randrange(1, 9))
        ]
        for stream in streams:
            for _ in range(chance.randrange(6)):
                next(stream, None)
        chance.shuffle(streams)
        for stream in streams[chance.randrange(len(streams)) :]:
            stream.close()
            model.check_integrity()
        del streams, stream  # the others are closed by losing their last reader
        assert_nothing_left(model)
    assert texts(model) == expected


def test_a_stream_that_nobody_ever_reads(model: FastPromptModel) -> None:
    stream = model.stream("привет", "short", max_new_tokens=8)
    assert counts(model)["waiting"] == 1
    stream.close()
    assert_nothing_left(model)


@pytest.mark.parametrize("settings", [{}, {"prompt_lookup_num_tokens": 2}], ids=["engine", "fallback"])
def test_a_stream_collected_in_the_midst_of_a_step(model: FastPromptModel, settings: dict[str, int]) -> None:
    """The collector closes it in a thread that holds every lock there is."""

    class Holder:
        pass

    holder = Holder()
    holder.itself = holder
    holder.stream = model.stream("привет", max_new_tokens=40, **ENDLESS, **settings)
    next(holder.stream)
    del holder
    done = threading.Event()

    def work() -> None:
        model.generate("да", max_new_tokens=4)
        done.set()

    with hooked(model, Fault(lambda: bool(gc.collect()), (1,))):
        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        wait_until_set(done)
    assert_nothing_left(model)


def test_faults_at_random_while_many_threads_call(model: FastPromptModel) -> None:
    """One step in ten fails; all threads come to an end."""
    expected = texts(model)
    chance = random.Random(5)

    def maybe() -> None:
        if chance.random() < 0.1:
            raise RuntimeError("broken")

    def work(index: int) -> int:
        mine = random.Random(index)
        failures = 0
        for _ in range(6):
            text, name = mine.choice(REQUESTS)
            try:
                if mine.random() < 0.5:
                    model.generate(text, name, max_new_tokens=8, num_beams=mine.choice([1, 2]))
                else:
                    stream = model.stream(text, name, max_new_tokens=8, **ENDLESS)
                    for _ in range(mine.randrange(9)):
                        next(stream, None)
                    stream.close()
            except EngineStepError:
                failures += 1
        return failures

    with hooked(model, Fault(maybe)), ThreadPoolExecutor(6) as pool:
        failures = list(pool.map(work, range(6)))
    assert sum(failures) > 0
    assert_nothing_left(model)
    assert texts(model) == expected


@pytest.mark.parametrize("after", [0, 3])
def test_a_stream_ends_with_its_model(after: int) -> None:
    model = serve()
    stream = model.stream("привет", "short", max_new_tokens=40, **ENDLESS)
    for _ in range(after):
        next(stream)
    model.detach()
    with pytest.raises(DetachedModelError, match="make the request again"):
        list(stream)
