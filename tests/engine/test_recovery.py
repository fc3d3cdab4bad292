"""What a review found: states that the engine has to come out of, and models that it has to refuse."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from engine.engine_cases import INPUTS, NAMES, assert_nothing_left, counts, hooked, poison, serve
from tiny_models import tiny_model, tiny_tokenizer

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import CapacityError, EngineStepError, ModelChangedError, NonFiniteLogitsError
from ruprompt_fast.sampling import processors

pytestmark = pytest.mark.every_backend


def test_warming_may_only_load() -> None:
    """The pool holds one prefix at a time, and the first comes back from host memory in a step without tokens."""
    page_bytes = serve().stats().engine.page_bytes
    served = serve(num_pages=8, prefix_cache_bytes=page_bytes)
    for name in ("short", "around", "short"):
        served.warm_up([name])
    found = counts(served)
    assert found["resident_prefixes"] == 1
    assert found["prefix_loads"] == 1
    assert served.generate("да", "short", max_new_tokens=5)
    assert_nothing_left(served)


@pytest.mark.cpu_backend("no engine runs")
def test_a_window_in_masks_only_takes_the_fallback() -> None:
    torch.manual_seed(0)
    config = tf.PhimoeConfig(
        vocab_size=60,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=64,
        max_position_embeddings=128,
        sliding_window=32,
        num_local_experts=2,
    )
    served = FastPromptModel.from_pretrained(tf.PhimoeForCausalLM(config).eval(), tokenizer=tiny_tokenizer())
    assert served.stats().path == "fallback"
    assert "window through masks only" in served.stats().reason


def test_other_weights_are_never_served_old_keys() -> None:
    served = serve()
    before = served.generate(INPUTS, NAMES, max_new_tokens=8)
    served.model.load_state_dict(tiny_model("llama", seed=5).state_dict())
    after = served.generate(INPUTS, NAMES, max_new_tokens=8)
    assert [output.token_ids for output in after] != [output.token_ids for output in before]
    fresh = serve()
    fresh.model.load_state_dict(tiny_model("llama", seed=5).state_dict())
    assert [output.token_ids for output in after] == [
        output.token_ids for output in fresh.generate(INPUTS, NAMES, max_new_tokens=8)
    ]


def test_one_broken_request_ends_its_call_at_once() -> None:
    served = serve()
    configs = [tf.GenerationConfig(max_new_tokens=90), tf.GenerationConfig(max_new_tokens=5)]
    with hooked(served, poison(served, "f"), index=0), pytest.raises(NonFiniteLogitsError):
        served.generate(["да", "буква f"], generation_config=configs, eos_token_id=None)
    assert counts(served)["steps"] < 10
    assert_nothing_left(served)


def test_more_beams_than_the_engine_runs_take_the_fallback() -> None:
    served = serve(max_batch_size=2)
    outputs = served.generate("привет", "short", num_beams=4, num_return_sequences=3, max_new_tokens=4)
    assert len(outputs) == 3
    assert counts(served)["steps"] == 0


def test_a_refusal_names_the_settings() -> None:
    served = serve(num_pages=2)
    with pytest.raises(CapacityError, match="kv_cache_bytes"):
        served.generate("привет", "short", max_new_tokens=100)


def test_a_processor_that_fails_ends_its_own_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(scores: object, history: object, **settings: float) -> None:
        raise ZeroDivisionError("of one request's numbers")

    monkeypatch.setattr(processors, "penalize_counts", fail)
    served, settings = serve(), {"max_new_tokens": 30, "eos_token_id": None}
    pieces = served.stream("привет", "short", **settings)
    text = next(pieces)
    with pytest.raises(EngineStepError, match="token of a request could not be chosen: ZeroDivisionError"):
        served.generate(["да", "нет"], presence_penalty=[0.0, 0.171875], max_new_tokens=5)
    assert text + "".join(pieces) == served.generate("привет", "short", **settings)[0].text
    assert_nothing_left(served)


def test_a_change_that_is_taken_back_leaves_a_model_that_serves() -> None:
    """The engine that was closed for it is not handed out again."""
    model = FastPromptModel.from_pretrained(tiny_model("gpt2"), tokenizer=tiny_tokenizer())
    expected = model.generate("да", max_new_tokens=4, eos_token_id=None)
    stream = model.stream("да", max_new_tokens=30, eos_token_id=None)
    next(stream)
    hook = model.model.transformer.h[0].register_forward_hook(lambda *arguments: None)
    with pytest.raises(ModelChangedError):
        list(stream)
    hook.remove()
    assert model.generate("да", max_new_tokens=4, eos_token_id=None) == expected
    assert_nothing_left(model)
