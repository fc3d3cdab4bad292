"""Settings of requests and of the engine: each does what it says, or is refused by name."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from engine.engine_cases import ENDLESS, INPUTS, NAMES, PAGE_BYTES, Fault, assert_nothing_left, counts, hooked, serve
from model_cases import make_prompt
from tiny_models import tiny_model, tiny_tokenizer
from transformers import GenerationConfig, PreTrainedModel

from ruprompt_fast import FastPromptModel, bundled
from ruprompt_fast.errors import (
    BatchMismatchError,
    CapacityError,
    SettingError,
    UnknownArgumentError,
    UnsupportedModelError,
)

SAMPLED = {"do_sample": True, "temperature": 2.0, "top_k": 0, "eos_token_id": None}
FALLBACK = {"prompt_lookup_num_tokens": 2}


@pytest.fixture(scope="module")
def model(backend: str) -> FastPromptModel:
    return serve()


def ids(model: FastPromptModel, *arguments: Any, **settings: Any) -> list[list[int]]:
    return [output.token_ids for output in model.generate(*arguments, **{"max_new_tokens": 12, **settings})]


# seeds


def test_a_seed_for_all(model: FastPromptModel) -> None:
    found = ids(model, ["привет"] * 4, "short", seed=1, **SAMPLED)
    assert found == [found[0]] * 4
    assert found[0] != ids(model, "привет", "short", seed=2, **SAMPLED)[0]


@pytest.mark.every_backend
def test_a_seed_for_each(model: FastPromptModel) -> None:
    found = ids(model, ["привет"] * 4, "short", seed=[1, 2, 1, 2**64 - 1], **SAMPLED)
    assert found[0] == found[2]
    assert len(set(map(tuple, found))) == 3
    assert found == [ids(model, "привет", "short", seed=seed, **SAMPLED)[0] for seed in (1, 2, 1, 2**64 - 1)]


def test_a_seed_for_some(model: FastPromptModel) -> None:
    first = ids(model, ["привет"] * 3, "short", seed=[None, 5, None], **SAMPLED)
    second = ids(model, ["привет"] * 3, "short", seed=[None, 5, None], **SAMPLED)
    assert first[1] == second[1]
    assert first[0] != first[2]
    assert first[0] != second[0]


@pytest.mark.every_backend
def test_samples_of_one_request_differ(model: FastPromptModel) -> None:
    found = ids(model, "привет", "short", seed=3, num_return_sequences=5, **SAMPLED)
    assert len(set(map(tuple, found))) == 5
    assert found == ids(model, "привет", "short", seed=3, num_return_sequences=5, **SAMPLED)


@pytest.mark.parametrize("family", ["llama", "t5"])
def test_seeds_on_the_fallback(family: str) -> None:
    """Repeatable, whatever runs beside them; torch's own generator is left where it was."""
    served = serve(family)
    settings = {**SAMPLED, **({"encoder_repetition_penalty": 1.2} if family == "llama" else {})}
    alone = [ids(served, item, name, seed=9, **settings)[0] for item, name in zip(INPUTS, NAMES, strict=True)]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    assert ids(served, INPUTS, NAMES, seed=9, **settings) == alone
    assert torch.equal(torch.rand(3), expected)
    assert ids(served, INPUTS, NAMES, seed=[9, 1, 9, 2, 9, 3], **settings)[::2] == alone[::2]


# penalties and biases


@pytest.mark.every_backend
def test_presence_and_frequency_penalties(model: FastPromptModel) -> None:
    def most_common(**settings: Any) -> int:
        return Counter(ids(model, "привет", max_new_tokens=40, **ENDLESS, **settings)[0]).most_common(1)[0][1]

    assert most_common(presence_penalty=100.0) == 1
    assert most_common(frequency_penalty=100.0) == 1
    assert most_common(presence_penalty=-100.0) == 40
    assert most_common(frequency_penalty=-100.0) == 40


def test_logit_bias(model: FastPromptModel) -> None:
    assert ids(model, "привет", logit_bias={10: 100.0}, **ENDLESS) == [[10] * 12]
    free = ids(model, "привет", **ENDLESS)[0]
    banned = ids(model, "привет", logit_bias={free[0]: float("-inf")}, **ENDLESS)[0]
    assert free[0] not in banned


EXTRAS: list[tuple[str, list[Any]]] = [
    ("presence_penalty", [0.0, 1.5, -3.0]),
    ("frequency_penalty", [2.0, 0.0, 0.7]),
    ("logit_bias", [None, {10: 3.0, 11: -2.0}, {12: 9.0}]),
    ("seed", [4, 4, 5]),
]


@pytest.mark.every_backend
@pytest.mark.parametrize(("name", "values"), EXTRAS, ids=[name for name, _ in EXTRAS])
def test_one_value_for_each_input(model: FastPromptModel, name: str, values: list[Any]) -> None:
    settings = {"seed": 1, **SAMPLED}
    together = ids(model, INPUTS[:3], NAMES[:3], **{**settings, name: values})
    alone = [
        ids(model, item, prompt, **{**settings, name: value})[0]
        for item, prompt, value in zip(INPUTS, NAMES, values, strict=False)
    ]
    assert together == alone
    with pytest.raises(BatchMismatchError, match=name):
        model.generate(INPUTS[:2], NAMES[:2], **{**settings, name: values})


# wrong values

NAN = float("nan")
WRONG: list[tuple[str, Any]] = [
    *(("seed", value) for value in (-1, 2**64, 1.5, "1", True, [1, -1, 1])),
    *(("presence_penalty", value) for value in (NAN, float("inf"), "1", None, [0.0, NAN, 0.0])),
    *(("frequency_penalty", value) for value in (NAN, float("-inf"), "1", None)),
    *(("logit_bias", value) for value in ({10: NAN}, {10: float("inf")}, {-1: 1.0}, {60: 1.0}, {"а": 1.0}, "а", 3)),
    *(("temperature", value) for value in (0.0, -1.0, NAN)),
    *(("top_p", value) for value in (1.5, -0.1)),
    *(("top_k", value) for value in (-1, 1.5)),
    *(("min_p", value) for value in (-0.1, 1.1)),
    *(("num_beams", value) for value in (0, -1, 1.5)),
    *(("num_return_sequences", value) for value in (0, -2)),
    *(("max_new_tokens", value) for value in (0, -1)),
    *(("repetition_penalty", value) for value in (0.0, -1.0)),
    *(("max_time", value) for value in (0.0, -1.0)),
    *(("stop_strings", value) for value in (3, [3])),
]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=lambda value: str(value)[:24])
def test_wrong_values_are_named(model: FastPromptModel, name: str, value: Any) -> None:
    calls = Fault(lambda: None)
    sampling = {} if name in ("num_beams",) else {"do_sample": True}
    with hooked(model, calls), pytest.raises(SettingError, match=name):
        model.generate(["да", "нет", "ну"], **{"max_new_tokens": 3, **sampling, name: value})
    assert calls.calls == 0
    assert_nothing_left(model)


def test_unknown_names(model: FastPromptModel) -> None:
    with pytest.raises(UnknownArgumentError, match="presence_penalt'"):
        model.generate("да", presence_penalt=1.0)
    with pytest.raises(UnknownArgumentError, match="repetition_penalty"):
        model.generate("да", repetition_penalti=1.0)


@pytest.mark.parametrize("extra", [{"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"logit_bias": {10: 1.0}}])
def test_what_only_the_engine_knows_is_refused_on_the_fallback(model: FastPromptModel, extra: dict[str, Any]) -> None:
    (name,) = extra
    with pytest.raises(SettingError, match=f"{name}.*prompt_lookup_num_tokens"):
        model.generate("да", **FALLBACK, **extra)
    with pytest.raises(SettingError, match=f"{name}.*encoder-decoder"):
        serve("t5").generate("да", **extra)


# one config for each request


@pytest.mark.every_backend
def test_every_request_its_own_way(model: FastPromptModel) -> None:
    """Greedy, sampling, beams, several of each, stop strings and one for the transformers fallback, in one call."""
    variants: list[dict[str, Any]] = [
        {"do_sample": False, "max_new_tokens": 9},
        {"do_sample": True, "temperature": 1.7, "top_p": 0.9, "max_new_tokens": 5, "num_return_sequences": 2},
        {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 2.0, "max_new_tokens": 14},
        {"do_sample": False, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "max_new_tokens": 20},
        {"prompt_lookup_num_tokens": 2, "max_new_tokens": 7},
        {"num_beams": 2, "early_stopping": True, "max_new_tokens": 6},
    ]
    configs = [GenerationConfig(**variant) for variant in variants]
    together = model.generate(INPUTS, NAMES, configs, seed=8)
    alone = [
        output
        for item, name, config in zip(INPUTS, NAMES, configs, strict=True)
        for output in model.generate(item, name, config, seed=8)
    ]
    assert together == alone
    assert [output.prompt for output in together] == [
        name
        for name, variant in zip(NAMES, variants, strict=True)
        for _ in range(variant.get("num_return_sequences", 1))
    ]


# logprobs


@pytest.mark.every_backend
def test_logprobs_of_what_was_sampled(model: FastPromptModel) -> None:
    """Each is the model's own log-probability of the token, after the tokens before it."""
    for output in model.generate(INPUTS[3], seed=2, max_new_tokens=8, output_scores=True, do_sample=True, top_k=0):
        assert output.logprobs is not None
        assert len(output.logprobs) == len(output.token_ids)
        text = model.tokenizer(INPUTS[3])["input_ids"]
        plain = tiny_model("llama")
        logits = plain(torch.tensor([[*text, *output.token_ids]])).logits[0, len(text) - 1 : -1]
        logits[:, len(model.tokenizer) :] = -torch.inf
        expected = logits.log_softmax(-1)[range(len(output.token_ids)), output.token_ids]
        assert output.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


def test_logprobs_only_where_asked_for(model: FastPromptModel) -> None:
    configs = [GenerationConfig(output_scores=flag, max_new_tokens=4) for flag in (True, False)]
    first, second = model.generate(["да", "нет"], generation_config=configs)
    assert first.logprobs is not None
    assert second.logprobs is None


# time


@pytest.mark.every_backend
@pytest.mark.parametrize("settings", [ENDLESS, {"num_beams": 3, "eos_token_id": None}], ids=["greedy", "beams"])
def test_time_ends_a_request_but_not_its_neighbours(model: FastPromptModel, settings: dict[str, Any]) -> None:
    configs = [GenerationConfig(max_time=0.2, max_new_tokens=100), GenerationConfig(max_new_tokens=100)]
    with hooked(model, Fault(lambda: time.sleep(0.005))):
        timed, whole = model.generate(["да", "да"], generation_config=configs, **settings)
    assert timed.finish_reason == "time"
    assert 0 < len(timed.token_ids) < 100
    assert (whole.finish_reason, len(whole.token_ids)) == ("length", 100)
    if "num_beams" not in settings:
        assert whole.token_ids[: len(timed.token_ids)] == timed.token_ids
    assert_nothing_left(model)


# progress


@pytest.mark.parametrize("path", [{}, FALLBACK], ids=["engine", "fallback"])
def test_progress_on_standard_error(
    model: FastPromptModel, capsys: pytest.CaptureFixture[str], path: dict[str, Any]
) -> None:
    silent = ids(model, INPUTS, NAMES, **path)
    assert capsys.readouterr() == ("", "")
    assert ids(model, INPUTS, NAMES, progress=True, **path) == silent
    out, err = capsys.readouterr()
    assert out == ""
    assert "generating" in err
    assert f"{len(INPUTS)}/{len(INPUTS)}" in err


def test_progress_over_both_paths(model: FastPromptModel, capsys: pytest.CaptureFixture[str]) -> None:
    configs = [GenerationConfig(**(FALLBACK if index % 2 else {}), max_new_tokens=3) for index in range(len(INPUTS))]
    model.generate(INPUTS, NAMES, configs, progress=True)
    assert f"{len(INPUTS)}/{len(INPUTS)}" in capsys.readouterr().err


# sizes

SIZES: list[tuple[dict[str, Any], str]] = [
    ({"max_batch_size": 0}, "max_batch_size"),
    ({"max_batch_size": -3}, "max_batch_size"),
    ({"max_batch_size": 1.5}, "max_batch_size"),
    ({"max_step_tokens": 0}, "max_step_tokens"),
    ({"max_step_tokens": 63}, "max_step_tokens.*max_batch_size"),
    ({"kv_cache_bytes": 0}, "kv_cache_bytes"),
    ({"kv_cache_bytes": -1}, "kv_cache_bytes"),
    ({"kv_cache_bytes": PAGE_BYTES - 1}, "kv_cache_bytes.*4096"),
    ({"prefix_cache_bytes": -1}, "prefix_cache_bytes"),
    ({"host_cache_bytes": -1}, "host_cache_bytes"),
    ({"dtype": "float12"}, "float12"),
]


@pytest.mark.parametrize(("sizes", "match"), SIZES, ids=lambda value: str(value)[:40])
def test_sizes_that_cannot_work(sizes: dict[str, Any], match: str) -> None:
    base = tiny_model("llama")
    embedding, layers = base.get_input_embeddings(), [type(module) for module in base.modules()]
    with pytest.raises(SettingError, match=match):
        FastPromptModel.from_pretrained(base, tokenizer=tiny_tokenizer(), **sizes)
    assert base.get_input_embeddings() is embedding
    assert [type(module) for module in base.modules()] == layers


@pytest.mark.every_backend
@pytest.mark.parametrize(
    "sizes",
    [
        {"max_batch_size": 1, "max_step_tokens": 1},
        {"max_batch_size": 3, "max_step_tokens": 7},
        {"num_pages": 6, "prefix_cache_bytes": PAGE_BYTES, "host_cache_bytes": 0},
        {"num_pages": 7, "prefix_cache_bytes": 2 * PAGE_BYTES},
    ],
    ids=str,
)
def test_sizes_change_no_text(model: FastPromptModel, sizes: dict[str, Any]) -> None:
    small = serve(**sizes)
    small.warm_up()
    for settings in (ENDLESS, {"seed": 3, **SAMPLED}):
        assert ids(small, INPUTS, NAMES, **settings) == ids(model, INPUTS, NAMES, **settings)
    assert_nothing_left(small)


@pytest.mark.every_backend
def test_no_memory_for_prefixes() -> None:
    """Prompts with a prefix are refused with the numbers; everything else runs."""
    served = serve(prefix_cache_bytes=0)
    for call in (lambda: served.generate("да", "short"), lambda: served.warm_up(["short"])):
        with pytest.raises(CapacityError, match="1 pages, more than the 0"):
            call()
    assert served.generate("да", max_new_tokens=3)
    assert_nothing_left(served)


@pytest.mark.every_backend
def test_what_was_asked_for_is_what_there_is() -> None:
    served = serve(num_pages=9)
    stats = served.stats()
    assert (stats.path, stats.reason) == ("engine", "")
    assert stats.engine is not None
    assert stats.engine.num_pages * stats.engine.page_bytes == 9 * PAGE_BYTES
    assert stats.engine.num_pages * stats.engine.page_size == 9 * 16
    rest = serve(kv_cache_bytes=10 * PAGE_BYTES - 1).stats().engine
    assert rest is not None
    assert rest.num_pages == (10 * PAGE_BYTES - 1) // rest.page_bytes
    padded = serve("t5").stats()
    assert (padded.path, padded.engine) == ("fallback", None)
    assert "encoder-decoder" in padded.reason


# dtypes


def test_int8_writes_russian() -> None:
    plain, served = (
        FastPromptModel.from_pretrained(bundled.MODEL, prompts=bundled.PROMPTS, quantization=quantization)
        for quantization in (None, "int8")
    )
    assert served.stats().path == "engine"
    settings = {"max_new_tokens": 60, "do_sample": False, "no_repeat_ngram_size": 3}
    outputs = served.generate(["Он", "Когда", "Без труда"], [None, None, "proverb"], **settings)
    letters = [c for output in outputs for c in output.text if c.isalpha()]
    assert len(letters) > 60
    assert sum("а" <= c.lower() <= "я" or c in "ёЁ" for c in letters) > 0.95 * len(letters)
    scored = [m.generate("Он", max_new_tokens=1, output_scores=True)[0].logprobs for m in (plain, served)]
    assert scored[0] == pytest.approx(scored[1], abs=0.3)


def test_int8_of_an_encoder_decoder_is_refused() -> None:
    base = tiny_model("t5")
    embedding = base.get_input_embeddings()
    with pytest.raises(UnsupportedModelError, match="encoder-decoder"):
        FastPromptModel.from_pretrained(base, tokenizer=tiny_tokenizer(), quantization="int8")
    assert base.get_input_embeddings() is embedding


@pytest.mark.every_backend
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_bfloat16_runs_on_the_engine(family: str) -> None:
    served = serve(family, dtype=torch.bfloat16)
    assert served.model.dtype == torch.bfloat16
    assert served.stats().path == "engine"
    together = ids(served, INPUTS, NAMES, **ENDLESS)
    assert [len(tokens) for tokens in together] == [12] * len(INPUTS)
    expected = serve(family).generate(INPUTS, NAMES, max_new_tokens=1, output_scores=True)
    found = served.generate(INPUTS, NAMES, max_new_tokens=1, output_scores=True)
    same = [(a, b) for a, b in zip(found, expected, strict=True) if a.token_ids == b.token_ids]
    assert len(same) >= len(INPUTS) - 2
    for a, b in same:
        assert a.logprobs == pytest.approx(b.logprobs, abs=0.1)
    assert_nothing_left(served)


# giving the model back


def text_of(model: PreTrainedModel, **settings: Any) -> torch.Tensor:
    prompt = torch.tensor([[5, 6, 7, 20, 21]])
    return model.generate(prompt, max_new_tokens=30, do_sample=False, eos_token_id=None, **settings)


@pytest.mark.every_backend
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "opt", "t5"])
def test_the_model_comes_back_as_it_was(family: str) -> None:
    fresh, base = tiny_model(family), tiny_model(family)
    modules = dict(base.named_modules())
    attention = base.config._attn_implementation
    served = serve_object(base)
    served.generate(INPUTS[:2], ["short", None], max_new_tokens=5)
    served.generate(INPUTS[0], "short", num_beams=2, max_new_tokens=5)
    assert served.detach() is base
    assert dict(base.named_modules()) == modules
    assert base.config._attn_implementation == attention
    for (name, expected), (other, found) in zip(fresh.named_parameters(), base.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(expected, found)
    prompt = torch.tensor([[5, 6, 7, 20, 21]])
    inputs = {"decoder_input_ids": prompt} if family == "t5" else {}
    assert torch.equal(fresh(prompt, **inputs).logits, base(prompt, **inputs).logits)
    assert torch.equal(text_of(fresh), text_of(base))
    assert torch.equal(text_of(fresh, num_beams=3), text_of(base, num_beams=3))


def serve_object(base: PreTrainedModel) -> FastPromptModel:
    tokenizer = tiny_tokenizer()
    return FastPromptModel.from_pretrained(
        base, prompts={"short": make_prompt("<P*3>{text}", base, tokenizer, 0)}, tokenizer=tokenizer
    )


@pytest.mark.every_backend
def test_the_model_itself_works_between_calls(model: FastPromptModel) -> None:
    """Its own attention is in place whenever the engine does not run it."""
    fresh = tiny_model("llama")
    before = ids(model, INPUTS, NAMES, **ENDLESS)
    assert torch.equal(text_of(model.model), text_of(fresh))
    assert ids(model, INPUTS, NAMES, **ENDLESS) == before


@pytest.mark.every_backend
@pytest.mark.parametrize("back", [lambda m: m.model.to(torch.float32), lambda m: m.model.float()], ids=["to", "float"])
def test_converting_the_model_builds_the_engine_again(back: Callable[[FastPromptModel], object]) -> None:
    served = serve()
    expected = ids(served, INPUTS, NAMES, **ENDLESS)
    assert counts(served)["steps"] > 0
    served.model.to(torch.bfloat16)
    assert counts(served)["steps"] == 0
    assert served.stats().path == "engine"
    engine = served.stats().engine
    assert engine is not None
    assert engine.page_bytes == PAGE_BYTES // 2 * engine.page_size // 16
    converted = ids(served, INPUTS, NAMES, **ENDLESS)
    assert converted == ids(serve(dtype=torch.bfloat16), INPUTS, NAMES, **ENDLESS)
    assert_nothing_left(served)
    back(served)
    assert [len(tokens) for tokens in ids(served, INPUTS, NAMES, **ENDLESS)] == [len(tokens) for tokens in expected]
    assert_nothing_left(served)


def test_a_failed_load_gives_the_model_back() -> None:
    base = tiny_model("llama")
    modules = dict(base.named_modules())
    with pytest.raises(SettingError):
        FastPromptModel.from_pretrained(base, tokenizer=tiny_tokenizer(), kv_cache_bytes=10)
    assert dict(base.named_modules()) == modules
    assert torch.equal(text_of(tiny_model("llama")), text_of(base))


def test_prompt_lookup_does_not_sample_after_a_prompt(model: FastPromptModel) -> None:
    with pytest.raises(SettingError, match="prompt_lookup_num_tokens with do_sample=True"):
        model.generate("привет", "short", do_sample=True, **FALLBACK)
