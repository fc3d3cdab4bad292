"""The engine's logits equal transformers' own eager forward of the same embeddings, one request at a time."""

from __future__ import annotations

import functools

import pytest
import torch
from engine.reference import NAMES, REQUESTS, ROUTED, TEXTS, Case, assert_at_rest, counts, cpu_only
from tolerances import LOGITS_ERROR
from torch import Tensor

from ruprompt_fast.dispatch.dispatcher import Dispatcher
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.embedding import attach_prompts
from ruprompt_fast.requests.inputs import encode_requests
from ruprompt_fast.requests.registry import PromptRegistry

pytestmark = pytest.mark.every_backend

LENGTHS = (1, 15, 16, 17, 31, 32, 33, 63, 64, 65)
CONTINUATION = [5, 9, 14]
LETTERS = "съешь же ещё этих мягких французских булок, да выпей чаю. " * 2


@functools.cache
def case(family: str) -> Case:
    return Case(family)


@functools.cache
def expected_logits(family: str) -> list[Tensor]:
    return [case(family).reference.logits(text, name, CONTINUATION) for text, name in REQUESTS]


def engine_logits(
    family: str, requests: list[tuple[str, str | None]], continuation: list[int], max_step_tokens: int
) -> Tensor:
    """[requests, continuation + 1, vocabulary] of an engine of its own."""
    fresh = Case(family)
    embedding = attach_prompts(fresh.base, [], len(fresh.tokenizer))
    registry = PromptRegistry(embedding.row_width, fresh.base.config, lambda: embedding.weight)
    for name, prompt in fresh.prompts.items():
        registry.add(name, prompt)
    options = EngineOptions(min(16, max_step_tokens), max_step_tokens, kv_cache_bytes=1 << 21)
    dispatcher = Dispatcher(fresh.base, fresh.tokenizer, embedding, options)
    texts, names = [text for text, _ in requests], [name for _, name in requests]
    encoded = encode_requests(texts, names, registry, fresh.tokenizer, embedding.first_row_id)
    logits = dispatcher.continuation_logits(encoded, continuation)
    assert dispatcher.stats().path == "engine"
    dispatcher.check_integrity()
    dispatcher.close()
    return logits


@pytest.mark.parametrize("max_step_tokens", [7, *cpu_only([1, 64], "chunks are below")])
@pytest.mark.parametrize("family", ROUTED)
def test_mixed_prompts(family: str, max_step_tokens: int) -> None:
    found = engine_logits(family, REQUESTS, CONTINUATION, max_step_tokens)
    expected = torch.stack(expected_logits(family))
    assert 0.3 < expected.std() < 10  # of order 1, so that an absolute error says something
    assert (found - expected).abs().max() <= LOGITS_ERROR


@pytest.mark.parametrize("max_step_tokens", [1, 7, 64])
@pytest.mark.parametrize("family", ["gpt2", "mistral", "gemma2"])
def test_lengths_around_page_borders(family: str, max_step_tokens: int) -> None:
    requests: list[tuple[str, str | None]] = [(LETTERS[:length], None) for length in LENGTHS]
    found = engine_logits(family, requests, [], max_step_tokens)
    for logits, (text, name) in zip(found, requests, strict=True):
        expected = case(family).reference.logits(text, name)
        assert (logits - expected).abs().max() <= LOGITS_ERROR, len(text)


@pytest.mark.parametrize(
    ("family", "max_step_tokens"), [*((family, 7) for family in ROUTED), ("gpt2", 1), ("gemma3", 1), ("gemma3", 64)]
)
def test_logprobs_of_decoded_tokens(family: str, max_step_tokens: int) -> None:
    """Sampled tokens decode one by one; the reference reads all of them in one pass."""
    served = case(family).serve(max_step_tokens=max_step_tokens)
    settings = {"do_sample": True, "top_k": 0, "output_scores": True, "max_new_tokens": 20, "eos_token_id": None}
    outputs = served.generate(TEXTS[:5], NAMES[:5], seed=list(range(5)), **settings)
    for output, (text, name) in zip(outputs, REQUESTS, strict=False):
        expected = case(family).reference.logprobs(text, name, output.token_ids)
        assert output.logprobs == pytest.approx(expected, abs=LOGITS_ERROR)
    assert_at_rest(served)


def test_logprobs_after_preemptions() -> None:
    """What is computed a second time is the same."""
    served = case("gpt2").serve(num_pages=9, max_step_tokens=16)
    settings = {"do_sample": True, "top_k": 0, "output_scores": True, "max_new_tokens": 40, "eos_token_id": None}
    outputs = served.generate(TEXTS, NAMES, seed=list(range(len(TEXTS))), **settings)
    for output, (text, name) in zip(outputs, REQUESTS, strict=True):
        expected = case("gpt2").reference.logprobs(text, name, output.token_ids)
        assert output.logprobs == pytest.approx(expected, abs=LOGITS_ERROR)
    assert counts(served).scheduler["preemptions"] > 0
    assert_at_rest(served)
