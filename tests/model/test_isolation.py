"""What one caller asks for, every other one is spared."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import transformers as tf
from engine.engine_cases import ENDLESS, INPUTS, NAMES, Fault, assert_nothing_left, hooked, num_orders, serve
from patience import HANG_SECONDS, join_all, wait_for, wait_until_set
from tiny_models import tiny_tokenizer

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import (
    DeadlockError,
    DetachedModelError,
    EngineStepError,
    SettingError,
    UnsupportedModelError,
)

BEAMS = {"num_beams": 2, "do_sample": True, "output_scores": True, "max_new_tokens": 6}
LOOKUP = {"prompt_lookup_num_tokens": 2}


def beside(work: Callable[[], object], call: Callable[[], Any], count: int) -> list[Any]:
    """What ``call`` gives, ``count`` times, while another thread repeats ``work``."""
    stop = threading.Event()
    begun = threading.Event()

    def repeat() -> None:
        while not stop.is_set():
            work()
            begun.set()

    thread = threading.Thread(target=repeat)
    thread.start()
    wait_until_set(begun)
    try:
        return [call() for _ in range(count)]
    finally:
        stop.set()
        join_all([thread])


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_settings_of_one_request_reach_no_other(family: str) -> None:
    model = serve(family)
    defaults = copy.deepcopy(model.model.generation_config)
    for path in ({}, LOOKUP):
        alone = model.generate("привет", "short", max_new_tokens=6, **path)
        found = beside(
            lambda: model.generate("да", "around", **BEAMS),
            lambda path=path: model.generate("привет", "short", max_new_tokens=6, **path),
            20,
        )
        assert found == [alone] * 20
        assert alone[0].logprobs is None
    assert model.model.generation_config.to_dict() == defaults.to_dict()


def test_the_model_is_as_it_was_while_a_request_runs() -> None:
    """Who looks at the model between two tokens of the fallback finds its own settings and no hook of ours."""
    model = serve()
    network = model.model
    config, hooks = network.generation_config, dict(network._forward_hooks)
    seen: list[bool] = []
    look = Fault(lambda: seen.append(network.generation_config is config and dict(network._forward_hooks) == hooks))
    with hooked(model, look):
        model.generate("да", "around", repetition_penalty=1.2, max_new_tokens=4, **LOOKUP)
    assert seen
    assert all(seen)


SAMPLED = {"do_sample": True, "temperature": 1.4, "eos_token_id": None, "max_new_tokens": 8}


@pytest.mark.parametrize(
    "settings",
    [
        LOOKUP,
        {"encoder_repetition_penalty": 1.1},
        {"num_beams": 2},
        {"encoder_no_repeat_ngram_size": 1, "num_return_sequences": 2},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_seeds_hold_on_the_fallback_whatever_runs_beside(settings: dict[str, Any]) -> None:
    model = serve()
    names = [None] * len(INPUTS) if "prompt_lookup_num_tokens" in settings else NAMES
    texts = [item if isinstance(item, str) else "поле" for item in INPUTS]
    inputs = texts if names[0] is None else INPUTS
    calls = [
        (item, name, {**SAMPLED, **settings, "seed": seed})
        for item, name in zip(inputs, names, strict=True)
        for seed in (1, 2)
    ]
    alone = [model.generate(item, name, **options) for item, name, options in calls]
    stop = threading.Event()

    def unseeded() -> None:
        while not stop.is_set():
            model.generate("да", "short", do_sample=True, encoder_repetition_penalty=1.2, max_new_tokens=3)
            torch.rand(1)

    threads = [threading.Thread(target=unseeded) for _ in range(2)]
    for thread in threads:
        thread.start()
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda call: model.generate(call[0], call[1], **call[2]), calls))
    stop.set()
    join_all(threads)
    assert together == alone
    if names[0] is not None:  # in one batch, too
        batch = model.generate(inputs, names, **{**SAMPLED, **settings, "seed": 1})
        assert batch == [output for outputs in alone[::2] for output in outputs]


def test_sampling_on_the_fallback_leaves_torchs_generator_alone() -> None:
    model = serve()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    model.generate("да", "short", seed=5, encoder_repetition_penalty=1.2, **SAMPLED)
    assert torch.equal(torch.rand(4), expected)
    torch.manual_seed(4)
    first = model.generate(INPUTS, NAMES, encoder_repetition_penalty=1.2, **SAMPLED)
    torch.manual_seed(4)
    assert model.generate(INPUTS, NAMES, encoder_repetition_penalty=1.2, **SAMPLED) == first


@pytest.mark.parametrize("path", [{}, LOOKUP], ids=["engine", "fallback"])
def test_a_long_call_of_the_fallback_lets_others_between(path: dict[str, Any]) -> None:
    """From its fifth token on it begins none before somebody else waits, until the other call is over."""
    model = serve()
    expected = model.generate("привет", "short", max_new_tokens=4, **ENDLESS)
    long_ids = model.generate("да", max_new_tokens=100, **ENDLESS, **LOOKUP)
    order: list[str] = []
    engine_lock = model._dispatcher._loop._engine_lock
    calls = Fault(lambda: calls.calls < 5 or wait_for(lambda: engine_lock._gates or "short" in order))
    with hooked(model, calls):
        thread = threading.Thread(
            target=lambda: order.append(
                f"long {model.generate('да', max_new_tokens=100, **ENDLESS, **LOOKUP) == long_ids}"
            )
        )
        thread.start()
        wait_for(lambda: calls.calls >= 3)
        assert model.generate("привет", "short", max_new_tokens=4, **ENDLESS, **path) == expected
        order.append("short")
        join_all([thread])
    assert order.index("short") < order.index("long True")


def test_detaching_ends_a_call_of_the_fallback() -> None:
    model = serve()
    calls = Fault(lambda: None)
    outcome: list[BaseException] = []

    def work() -> None:
        try:
            while True:
                model.generate("да", max_new_tokens=100, **ENDLESS, **LOOKUP)
        except BaseException as error:
            outcome.append(error)

    with hooked(model, calls):
        thread = threading.Thread(target=work)
        thread.start()
        wait_for(lambda: calls.calls > 5)
        model.detach()
        join_all([thread])
    assert [type(error) for error in outcome] == [DetachedModelError]


def test_one_requests_own_error_fails_it_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that cannot decode one of the tokens: stop strings are looked for in the decoded text."""
    model = serve()
    settings = {"max_new_tokens": 10, "stop_strings": ["никогда такого"], **ENDLESS}
    expected = [model.generate(item, name, **settings) for item, name in zip(INPUTS, NAMES, strict=True)]
    (token,) = model.tokenizer("w", add_special_tokens=False)["input_ids"]
    decode = model.tokenizer.decode

    def broken(ids: Any, *args: Any, **kwargs: Any) -> str:
        if token in list(ids):
            raise UnicodeError("cannot decode this")
        return decode(ids, *args, **kwargs)

    monkeypatch.setattr(model.tokenizer, "decode", broken)
    outcomes: list[Any] = [None] * (len(INPUTS) + 1)

    def work(index: int) -> None:
        try:
            if index < len(INPUTS):
                outcomes[index] = model.generate(INPUTS[index], NAMES[index], suppress_tokens=[token], **settings)
            else:
                outcomes[index] = model.generate("да", logit_bias={token: 1000.0}, **settings)
        except BaseException as error:
            outcomes[index] = error

    with ThreadPoolExecutor(len(outcomes)) as pool:
        list(pool.map(work, reversed(range(len(outcomes)))))
    assert isinstance(outcomes[-1], EngineStepError)
    assert "UnicodeError" in str(outcomes[-1])
    monkeypatch.undo()
    assert outcomes[:-1] == [
        model.generate(item, name, suppress_tokens=[token], **settings)
        for item, name in zip(INPUTS, NAMES, strict=True)
    ]
    assert [model.generate(item, name, **settings) for item, name in zip(INPUTS, NAMES, strict=True)] == expected
    assert_nothing_left(model)


def test_streams_are_checked_as_calls_are() -> None:
    """Before the first piece is asked for."""
    with pytest.raises(SettingError, match="virtual tokens as text"):
        serve().stream("да", "short", prompt_lookup_num_tokens=2, do_sample=True)
    with pytest.raises(SettingError, match="decoder-only"):
        serve("t5").stream("да", "short", guidance_scale=1.5)


def test_the_fallback_runs_so_many_sequences_at_once_and_no_more() -> None:
    model = serve("t5", max_batch_size=8)
    rows: list[int] = []

    def hook(module: Any, arguments: Any) -> None:
        rows.append(arguments[0].shape[0])

    with hooked(model, hook):
        outputs = model.generate(["да", "нет", "ну", "ой", "эх"], num_beams=3, max_new_tokens=3)
    assert len(outputs) == 5
    assert max(rows) == 6


def test_a_model_that_depends_on_the_whole_batch_runs_one_request_at_a_time() -> None:
    """Long rotary positions look at the longest sequence of a batch."""
    torch.manual_seed(0)
    config = tf.Phi3Config(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        original_max_position_embeddings=16,
        pad_token_id=0,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 10000.0,
            "short_factor": [1.0] * 8,
            "long_factor": [4.0] * 8,
        },
    )
    model = FastPromptModel.from_pretrained(tf.Phi3ForCausalLM(config).eval(), tokenizer=tiny_tokenizer())
    assert model.stats().path == "fallback"
    inputs = ["да", "нет, не так уж и долго это всё", "ну"]
    alone = [model.generate(item, max_new_tokens=6, **ENDLESS)[0].token_ids for item in inputs]
    together = model.generate(inputs, max_new_tokens=6, **ENDLESS)
    assert [output.token_ids for output in together] == alone


def test_a_model_that_was_compiled_in_place_is_refused_by_name() -> None:
    model = serve()
    model.model.compile()
    with pytest.raises(UnsupportedModelError, match="compile"):
        model.generate("да", "short", max_new_tokens=2)


def test_two_who_warm_up_one_prompt_are_both_told_that_it_failed() -> None:
    model = serve()
    outcomes: list[type[BaseException]] = []
    both = threading.Barrier(2)

    def work() -> None:
        both.wait(HANG_SECONDS)
        try:
            model.warm_up(["around"])
        except EngineStepError as error:
            outcomes.append(type(error))

    def wait_then_fail() -> None:
        # For a moment only: an order that was taken in together with the first does not wait any more.
        for _ in range(100):
            if num_orders(model) >= 1:
                break
            time.sleep(0.01)
        raise RuntimeError("broken")

    with hooked(model, Fault(wait_then_fail, (1,))):
        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        join_all(threads)
    # The second order was taken in after the step that failed, if it was not taken in with the first.
    assert outcomes in ([EngineStepError], [EngineStepError] * 2)
    model.warm_up(["around"])
    assert_nothing_left(model)


@pytest.mark.parametrize("path", [{}, LOOKUP], ids=["engine", "fallback"])
def test_a_hook_that_calls_the_model_is_refused(path: dict[str, Any]) -> None:
    """It would wait for its own step."""
    model = serve()
    expected = model.generate("да", max_new_tokens=3, **path)
    with (
        hooked(model, Fault(lambda: model.stats(), (1,))),
        pytest.raises((EngineStepError, DeadlockError), match="own steps"),
    ):
        model.generate("да", max_new_tokens=3, **path)
    assert model.generate("да", max_new_tokens=3, **path) == expected
