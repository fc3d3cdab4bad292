"""Greedy and beam text equal transformers' own generate, whatever the engine does with its pages meanwhile."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from engine.reference import END, NAMES, REQUESTS, ROUTED, TEXTS, Case, assert_at_rest, counts, cpu_only
from tiny_models import FAMILIES, PADDED_FAMILIES, tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from ruprompt_fast import FastPromptModel, Prompt, PromptFormat, TensorPromptProvider

pytestmark = pytest.mark.every_backend

SOME = ["gpt2", "mistral", "gemma2"]
GREEDY: dict[str, Any] = {"max_new_tokens": 16}
BEAMS: dict[str, Any] = {"max_new_tokens": 10, "num_beams": 3}
KEPT_BEAMS: dict[str, Any] = {**BEAMS, "num_return_sequences": 3, "length_penalty": 0.5, "early_stopping": True}
LONG_TEXT = "съешь же ещё этих мягких французских булок, да выпей чаю. "


@functools.cache
def case(family: str) -> Case:
    return Case(family)


@functools.cache
def expected_ids(family: str, *settings: tuple[str, Any]) -> list[list[int]]:
    reference = case(family).reference
    return [ids for text, name in REQUESTS for ids in reference.generate(text, name, **dict(settings))]


def assert_equals_transformers(served: FastPromptModel, family: str, settings: dict[str, Any]) -> None:
    outputs = served.generate(TEXTS, NAMES, do_sample=False, eos_token_id=END, **settings)
    assert [output.token_ids for output in outputs] == expected_ids(family, *settings.items())


@pytest.mark.parametrize(
    ("family", "max_step_tokens"), [*((family, 7) for family in ROUTED), *((f, n) for f in SOME for n in (1, 64))]
)
def test_greedy(family: str, max_step_tokens: int) -> None:
    served = case(family).serve(max_step_tokens=max_step_tokens)
    assert_equals_transformers(served, family, GREEDY)
    assert_at_rest(served)


@pytest.mark.parametrize("settings", [BEAMS, KEPT_BEAMS], ids=["best", "all kept"])
@pytest.mark.parametrize("max_step_tokens", [7, *cpu_only([3, 64], "chunks are above")])
@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_beams(family: str, max_step_tokens: int, settings: dict[str, Any]) -> None:
    served = case(family).serve(max_step_tokens=max_step_tokens)
    assert_equals_transformers(served, family, settings)
    assert counts(served).scheduler["copies"] > 0  # forks that write into what they shared
    assert_at_rest(served)


@pytest.mark.parametrize("settings", [{"max_new_tokens": 40}, KEPT_BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("max_step_tokens", [7, 64])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_preemption(family: str, max_step_tokens: int, settings: dict[str, Any]) -> None:
    served = case(family).serve(num_pages=10, max_step_tokens=max_step_tokens)
    assert_equals_transformers(served, family, settings)
    assert counts(served).scheduler["preemptions"] > 0
    assert_at_rest(served)


def test_samples_and_beams_beside_greedy_requests() -> None:
    """Requests that fork share their steps and a small pool with requests that do not."""
    served = case("gpt2").serve(num_pages=15, max_step_tokens=64)
    samples = {"do_sample": True, "num_return_sequences": 4, "max_new_tokens": 30}
    settings: list[dict[str, Any]] = [{"max_new_tokens": 30}, {"max_new_tokens": 10, "num_beams": 3}, samples]
    configs = [GenerationConfig(**settings[index % 3]) for index in range(len(TEXTS))]
    outputs = iter(served.generate(TEXTS, NAMES, configs, seed=3, eos_token_id=END))
    for index, (text, name) in enumerate(REQUESTS):
        found = [next(outputs).token_ids for _ in range(4 if index % 3 == 2 else 1)]
        if index % 3 == 2:
            assert len({tuple(ids) for ids in found}) == 4
        else:
            assert found == case("gpt2").reference.generate(text, name, **settings[index % 3])
    assert counts(served).scheduler["preemptions"] > 0
    assert_at_rest(served)


@pytest.mark.parametrize("limit", ["pool", "prefix budget"])
@pytest.mark.parametrize("host_cache_bytes", [0, 1 << 24], ids=["computed again", "host copies"])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_eviction_of_prefixes(family: str, host_cache_bytes: int, limit: str) -> None:
    pages = {"num_pages": 6} if limit == "pool" else {"num_pages": 64, "prefix_pages": 3}
    served = case(family).serve(**pages, host_cache_bytes=host_cache_bytes, max_step_tokens=64)
    expected = expected_ids(family, *GREEDY.items())
    for _ in range(2):  # one request after another, so that each finds its prefix gone
        for (text, name), ids in zip(REQUESTS, expected, strict=True):
            (output,) = served.generate(text, name, do_sample=False, eos_token_id=END, **GREEDY)
            assert output.token_ids == ids
            assert_at_rest(served)
    found = counts(served)
    assert found.scheduler["prefix_evictions"] > 0
    assert found.prefix_cache.evictions == found.scheduler["prefix_evictions"]
    assert (found.prefix_cache.loads > 0) == (host_cache_bytes > 0)
    assert found.scheduler["prefix_loads"] == found.prefix_cache.loads


def test_eviction_under_a_mixed_load() -> None:
    served = case("gpt2").serve(num_pages=8, max_step_tokens=16)
    for _ in range(2):
        assert_equals_transformers(served, "gpt2", GREEDY)
        assert_at_rest(served)
    found = counts(served)
    assert found.scheduler["prefix_evictions"] > 0
    assert found.prefix_cache.loads > 0


@pytest.mark.parametrize("max_step_tokens", [7, 64])
@pytest.mark.parametrize("family", ["gpt2", "mistral"])
def test_shared_text_pages(family: str, max_step_tokens: int) -> None:
    """Long texts that begin alike share whole pages; also those after one prompt, never those after two."""
    served = case(family).serve(max_step_tokens=max_step_tokens)
    endings = ["", "а", "где ключ", "нет"]
    for name in (None, "leading", "around"):
        before = counts(served).scheduler["text_page_hits"]
        for ending in endings:
            text = LONG_TEXT + ending
            (output,) = served.generate(text, name, do_sample=False, eos_token_id=END, **GREEDY)
            assert [output.token_ids] == case(family).reference.generate(text, name, **GREEDY)
        assert counts(served).scheduler["text_page_hits"] > before
        assert_at_rest(served)
    cached = counts(served).scheduler["text_page_hits"]
    (output,) = served.generate(LONG_TEXT, "page", do_sample=False, eos_token_id=END, **GREEDY)
    assert [output.token_ids] == case(family).reference.generate(LONG_TEXT, "page", **GREEDY)
    assert counts(served).scheduler["text_page_hits"] == cached
    assert_at_rest(served)


CAUSES = {
    "gptj": "GPTJForCausalLM has 2 layers, of which 0 called our attention",
    "gpt_neo": "GPTNeoForCausalLM has 2 layers, of which 0 called our attention",
    "bloom": "takes no position_ids",
    "falcon": "does not route its attention",
    "mpt": "takes no position_ids",
    "llama_dynamic": "dynamic rotary positions",
    "t5": "encoder-decoder",
}


@pytest.mark.cpu_backend("no engine runs")
def test_causes_cover_the_padded_families() -> None:
    assert set(CAUSES) == {*PADDED_FAMILIES, *(set(FAMILIES) - set(ROUTED))}


@pytest.mark.cpu_backend("no engine runs")
@pytest.mark.parametrize("family", CAUSES)
def test_what_the_check_refuses_takes_the_fallback(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    width = model.get_input_embeddings().embedding_dim
    prompt = Prompt(
        PromptFormat("<P*6>{text}", tokenizer=tokenizer),
        TensorPromptProvider.from_pretrained(torch.randn(6, width)),
    )
    embeds = torch.cat([prompt.rows(), model.get_input_embeddings()(torch.tensor(tokenizer("привет")["input_ids"]))])
    expected = model.generate(
        inputs_embeds=embeds[None].detach(),
        attention_mask=torch.ones(1, len(embeds), dtype=torch.long),
        max_new_tokens=8,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=END,
        suppress_tokens=list(range(len(tokenizer), model.config.vocab_size)) or None,
    )[0].tolist()
    served = FastPromptModel.from_pretrained(model, {"joke": prompt}, tokenizer)
    found = served.stats()
    assert (found.path, found.engine) == ("fallback", None)
    assert CAUSES[family] in found.reason
    inputs, names = ["привет", "а как дела сегодня у всех"], ["joke", None]
    together = served.generate(inputs, names, max_new_tokens=8, do_sample=False, eos_token_id=END)
    new_ids = expected[1:] if model.config.is_encoder_decoder else expected
    assert together[0].token_ids == new_ids[: len(together[0].token_ids)]
    alone = served.generate(inputs[1], max_new_tokens=8, do_sample=False, eos_token_id=END)
    assert together[1].token_ids == alone[0].token_ids
    served.check_integrity()
