"""A step that is launched before the tokens of the one before are read gives everybody the same tokens."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from backends.cuda.engine_cases import (
    KINDS,
    NUM_NEW,
    WatchedDevice,
    case,
    config,
    disputes,
    ended,
    endless,
    engines_on,
    expected,
    mixed,
    stats,
    trouble,
    troubled,
)
from engine.reference import NAMES, REQUESTS, TEXTS, assert_at_rest, counts
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from transformers import GenerationConfig

from ruprompt_fast import FastPromptModel
from ruprompt_fast.backends.cuda import ahead
from ruprompt_fast.backends.cuda.options import CudaOptions
from ruprompt_fast.errors import EngineStepError

AHEAD = CudaOptions(runs_ahead=True)
ENDLESS = {"max_new_tokens": NUM_NEW, "eos_token_id": None}


@pytest.fixture(scope="module", params=["sure", "disputed"])
def model(request: pytest.FixtureRequest) -> Iterator[FastPromptModel]:
    """With few pages, so that requests are taken back in the midst of a bucket; the device may be wrong at times."""
    if request.param == "sure":
        with engines_on(WatchedDevice(), AHEAD):
            yield case().serve(num_pages=9, max_batch_size=6, max_step_tokens=48)
    else:
        with engines_on(WatchedDevice(), AHEAD), disputes(every=5):
            yield case().serve(num_pages=9, max_batch_size=6, max_step_tokens=48)


@pytest.mark.parametrize(("host", "waited", "pays"), [(1e-3, 5e-3, True), (1e-4, 5e-3, False), (1e-3, 0.0, True)])
def test_it_pays_as_soon_as_the_hosts_part_is_a_twentieth(
    host: float, waited: float, pays: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(ahead, "time", SimpleNamespace(perf_counter=lambda: now))
    run_ahead = ahead.RunAhead()
    assert not run_ahead.pays
    for _ in range(3):
        now += host + waited
        run_ahead.note(waited)
    assert run_ahead.pays == pays
    now += 100.0  # nobody asked for anything
    run_ahead.note(waited)
    assert run_ahead.pays == pays


def test_the_same_tokens_as_in_turns(model: FastPromptModel) -> None:
    before = stats(model)
    assert mixed(model) == expected()
    after = stats(model)
    assert after.num_ahead_steps > before.num_ahead_steps
    assert_at_rest(model)


REQUEST = st.tuples(
    st.integers(0, len(REQUESTS) - 1), st.integers(0, len(KINDS) - 1), st.integers(0, 1), st.integers(1, NUM_NEW)
)


@examples(max_examples=20)
@given(st.lists(REQUEST, min_size=1, max_size=8), st.integers(0, 59), st.randoms(use_true_random=False))
def test_ends_and_cancels(
    model: FastPromptModel, requests: list[tuple[int, int, int, int]], end: int, chance: random.Random
) -> None:
    """Texts end at a token or a length, and streams are closed, while the token after is on its way."""
    streams = [
        model.stream(TEXTS[index], NAMES[index], config(kind, most), seed=seed, eos_token_id=end)
        for index, kind, seed, most in requests
    ]
    for stream in streams[1:]:
        for _ in range(chance.randrange(4)):
            next(stream, None)
        if chance.random() < 0.3:
            stream.close()
            model.check_integrity()
    for stream in streams:
        stream.close()
    assert_at_rest(model)
    indices, kinds, seeds, _ = zip(*requests, strict=True)
    outputs = model.generate(
        [TEXTS[index] for index in indices],
        [NAMES[index] for index in indices],
        [config(kind, most) for _, kind, _, most in requests],
        seed=list(seeds),
        eos_token_id=end,
    )
    found = [output.token_ids for output in outputs]
    assert found == [ended(endless(index, kind, seed), most, end) for index, kind, seed, most in requests]
    assert_at_rest(model)


def test_the_token_after_an_end_is_discarded(model: FastPromptModel) -> None:
    """It is computed beside the others, and nobody gets it."""
    end = endless(0, 0, 0)[3]
    outputs = model.generate(TEXTS[:2], NAMES[:2], [config(0), config(0)], seed=0, eos_token_id=end)
    assert [output.token_ids for output in outputs] == [ended(endless(index, 0, 0), NUM_NEW, end) for index in (0, 1)]
    assert outputs[0].finish_reason == "stop"
    assert_at_rest(model)


def test_beams_samples_and_bad_words_beside_it(model: FastPromptModel) -> None:
    """Steps with what only the host can choose are in turns; those after them run ahead again."""
    others: list[dict[str, Any]] = [
        {"num_beams": 2, "max_new_tokens": 3},
        {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 3},
        {"bad_words_ids": [[7], [8, 9]], "max_new_tokens": 3},
    ]
    configs = [config(0), *(GenerationConfig(**other) for other in others)]
    before = stats(model).num_ahead_steps
    (output, *_) = model.generate(TEXTS[:4], NAMES[:4], configs, seed=0, eos_token_id=None)
    assert output.token_ids == endless(0, 0, 0)
    assert stats(model).num_ahead_steps > before
    assert_at_rest(model)


def test_disputes_were_tested(model: FastPromptModel, request: pytest.FixtureRequest) -> None:
    is_disputed = "disputed" in request.node.name
    mixed(model)
    assert (stats(model).num_host_rows > 10) == is_disputed
    assert stats(model).num_ahead_steps > 0
    assert counts(model).scheduler["preemptions"] > 0


def read(stream: Iterable[str]) -> str | None:
    """The text of a stream, if it does not fail."""
    try:
        return "".join(stream)
    except EngineStepError:
        return None


@pytest.mark.parametrize("wrong", [False, True], ids=["sure", "disputed"])
def test_a_failing_step_while_another_is_in_flight(wrong: bool) -> None:
    """Those of both steps fail; who waits for room does not."""
    with engines_on(WatchedDevice(), AHEAD), disputes(every=3 if wrong else 10_000):
        model = troubled().serve(max_batch_size=2)
        assert mixed(model, 3) == expected(3)
        alone = [model.generate(TEXTS[i], NAMES[i], config(i), seed=i, eos_token_id=None)[0].text for i in range(3)]
        for at in (3, 4, 9):
            streams = [model.stream(TEXTS[i], NAMES[i], config(i), seed=i, eos_token_id=None) for i in range(3)]
            with trouble(lambda: 1 / 0, at):
                found = [read(stream) for stream in streams]
            assert 0 < found.count(None) <= 2
            assert [text or whole for text, whole in zip(found, alone, strict=True)] == alone
            assert_at_rest(model)
            assert mixed(model, 3) == expected(3)


def test_a_request_that_only_the_step_in_flight_has(model: FastPromptModel) -> None:
    """Its last token is on its way when everything else is done."""
    for most in (1, 2, 3):
        outputs = model.generate(TEXTS[:3], NAMES[:3], config(0, most), seed=0, eos_token_id=None)
        assert [output.token_ids for output in outputs] == [endless(index, 0, 0)[:most] for index in range(3)]
        assert_at_rest(model)
