"""What a request samples depends on its seed and on nothing else; what a prompt's name serves, on its last prompt."""

from __future__ import annotations

import functools
import random
from typing import Any

import pytest
import torch
from engine.reference import (
    END,
    NAMES,
    REQUESTS,
    TEXTS,
    Case,
    assert_at_rest,
    cached_by_backend,
    counts,
    cpu_only,
    num_pages,
)
from tiny_models import tiny_tokenizer
from tolerances import LOGITS_ERROR

from ruprompt_fast import FastPromptModel, GenerationOutput, Prompt, PromptFormat, TensorPromptProvider

pytestmark = pytest.mark.every_backend

SAMPLING: dict[str, dict[str, Any]] = {
    "plain": {"top_k": 0},
    "temperature": {"top_k": 0, "temperature": 1.7},
    "top_k": {"top_k": 5},
    "top_p": {"top_k": 0, "top_p": 0.8},
    "min_p": {"top_k": 0, "min_p": 0.05},
    "typical_p": {"top_k": 0, "typical_p": 0.7},
    "repetition": {"top_k": 0, "repetition_penalty": 1.4, "no_repeat_ngram_size": 2},
    "presence": {"top_k": 0, "presence_penalty": 0.7, "frequency_penalty": 0.3},
    "all": {"top_k": 20, "temperature": 1.3, "top_p": 0.95, "repetition_penalty": 1.2, "logit_bias": {7: 1.5}},
}
SETTINGS = ["plain", *cpu_only([name for name in SAMPLING if name not in ("plain", "all")], "one sampler"), "all"]
# Long enough for whole pages of its own after a prefix, which requests of one prompt share.
LONG_TEXT = "съешь же ещё этих мягких французских булок, да выпей чаю. "
SEEDS = [100 + index for index in range(len(REQUESTS))]
COMMON: dict[str, Any] = {"do_sample": True, "max_new_tokens": 12, "output_scores": True, "eos_token_id": END}


@functools.cache
def case() -> Case:
    return Case("gpt2")


@cached_by_backend
def server(num_pages: int | None = None, max_step_tokens: int = 64) -> FastPromptModel:
    return case().serve(num_pages=num_pages, max_step_tokens=max_step_tokens)


@cached_by_backend
def alone(name: str) -> list[GenerationOutput]:
    """Every request by itself."""
    return [
        server().generate(text, prompt, seed=seed, **COMMON, **SAMPLING[name])[0]
        for (text, prompt), seed in zip(REQUESTS, SEEDS, strict=True)
    ]


def assert_same(found: list[GenerationOutput], expected: list[GenerationOutput]) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.token_ids == theirs.token_ids
        assert (ours.text, ours.finish_reason) == (theirs.text, theirs.finish_reason)
        assert ours.logprobs == pytest.approx(theirs.logprobs, abs=LOGITS_ERROR)


@pytest.mark.parametrize("name", SETTINGS)
def test_neighbours_and_order(name: str) -> None:
    """Every request draws what it draws alone, in batches of all orders."""
    for shuffle in range(2):
        order = list(range(len(REQUESTS)))
        random.Random(shuffle).shuffle(order)
        found = server().generate(
            [TEXTS[index] for index in order],
            [NAMES[index] for index in order],
            seed=[SEEDS[index] for index in order],
            **COMMON,
            **SAMPLING[name],
        )
        assert_same(found, [alone(name)[index] for index in order])
    assert_at_rest(server())


@pytest.mark.parametrize("max_step_tokens", [1, 7])
@pytest.mark.parametrize("name", ["plain", "all"])
def test_chunking(name: str, max_step_tokens: int) -> None:
    served = server(None, max_step_tokens)
    assert_same(served.generate(TEXTS, NAMES, seed=SEEDS, **COMMON, **SAMPLING[name]), alone(name))
    assert_at_rest(served)


@pytest.mark.parametrize("name", SETTINGS)
def test_preemption_and_eviction(name: str) -> None:
    served = case().serve(num_pages=6, max_step_tokens=64)
    assert_same(served.generate(TEXTS, NAMES, seed=SEEDS, **COMMON, **SAMPLING[name]), alone(name))
    found = counts(served).scheduler
    assert found["preemptions"] > 0
    assert found["prefix_evictions"] > 0
    assert_at_rest(served)


def test_neighbours_with_other_settings() -> None:
    """Greedy requests, beams and samples of other settings beside it change nothing."""
    from transformers import GenerationConfig

    others = [
        GenerationConfig(do_sample=False, max_new_tokens=9),
        GenerationConfig(num_beams=3, max_new_tokens=7),
        GenerationConfig(do_sample=True, top_k=3, max_new_tokens=15),
    ]
    mine = GenerationConfig(**{**COMMON, **SAMPLING["top_p"]})
    configs = [mine if index % 2 else others[index // 2 % 3] for index in range(len(REQUESTS))]
    found = server().generate(TEXTS, NAMES, configs, seed=SEEDS, eos_token_id=END)
    assert_same(found[1::2], alone("top_p")[1::2])
    assert_at_rest(server())


def test_seeds() -> None:
    settings = {**COMMON, **SAMPLING["plain"]}
    same = server().generate(["привет"] * 3, "around", seed=7, **settings)
    assert_same(same[1:], [same[0]] * 2)
    different = server().generate(["привет"] * 8, "around", seed=list(range(8)), **settings)
    assert len({tuple(output.token_ids) for output in different}) == 8
    torch.manual_seed(0)
    drawn = server().generate(["привет"] * 2, "around", **settings)
    assert drawn[0].token_ids != drawn[1].token_ids


@pytest.mark.parametrize("num_pages", [None, 18], ids=["ample", "tight"])
def test_several_samples_of_one_request(num_pages: int | None) -> None:
    """The streams differ from each other, and each is the same whatever runs beside it."""
    settings = {**COMMON, **SAMPLING["temperature"], "num_return_sequences": 4, "max_new_tokens": 30}
    settings["eos_token_id"] = None
    expected = [
        output
        for (text, name), seed in zip(REQUESTS, SEEDS, strict=True)
        for output in server().generate(text, name, seed=seed, **settings)
    ]
    for start in range(0, len(expected), 4):
        assert len({tuple(output.token_ids) for output in expected[start : start + 4]}) == 4
    served = server(num_pages)
    before = counts(served).scheduler["preemptions"]
    assert_same(served.generate(TEXTS, NAMES, seed=SEEDS, **settings), expected)
    assert (counts(served).scheduler["preemptions"] > before) == (num_pages is not None)
    first = server().generate(TEXTS, NAMES, seed=SEEDS, **{**settings, "num_return_sequences": 1})
    assert_same(first, expected[::4])  # more samples add streams, they do not change the first
    assert_at_rest(served)


def random_prompt(seed: int, num_rows: int = 20) -> Prompt:
    rows = torch.randn(num_rows, 32, generator=torch.Generator().manual_seed(seed))
    format = PromptFormat(f"<P*{num_rows}>{{text}}", tokenizer=tiny_tokenizer())
    return Prompt(format, TensorPromptProvider.from_pretrained(rows))


def fresh(num_prompts: int, **options: Any) -> FastPromptModel:
    """A server of its own with prompts ``p0``, ``p1``, ... of different rows only."""
    served = case().serve(**options)
    for name in list(served.prompts):
        served.remove_prompt(name)
    for index in range(num_prompts):
        served.add_prompt(f"p{index}", random_prompt(index))
    return served


@pytest.mark.parametrize("num_pages", [64, 7], ids=["resident", "evicted to the host"])
def test_a_replaced_prompt_never_serves_old_keys(num_pages: int) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "eos_token_id": None}
    served = fresh(2, num_pages=num_pages)  # of equal lengths, so that nothing but the rows tells them apart
    expected = [fresh(2).generate(LONG_TEXT, name, **settings)[0] for name in ("p0", "p1")]
    assert expected[0].logprobs != expected[1].logprobs
    for name in ("p0", "p1", "p0"):
        assert_same(served.generate(LONG_TEXT, name, **settings), [expected[int(name[1])]])
    if num_pages == 7:
        assert counts(served).prefix_cache.loads > 0
    served.add_prompt("p0", random_prompt(1))
    assert_same(served.generate(LONG_TEXT, "p0", **settings), [expected[1]])
    served.add_prompt("p1", random_prompt(0))
    assert_same(served.generate([LONG_TEXT] * 2, ["p0", "p1"], **settings), [expected[1], expected[0]])
    served.remove_prompt("p0")
    served.add_prompt("p0", random_prompt(0))
    assert_same(served.generate([LONG_TEXT] * 2, ["p0", "p1"], **settings), [expected[0]] * 2)
    assert counts(served).prefix_cache.entries == 1
    assert_at_rest(served)


def test_prompts_share_no_pages_of_their_texts() -> None:
    """The same text after other rows of equal number has other keys."""
    settings = {"max_new_tokens": 4, "do_sample": False, "output_scores": True, "eos_token_id": None}
    served = fresh(2)
    expected = [fresh(2).generate(LONG_TEXT, name, **settings)[0] for name in ("p0", "p1")]
    assert_same(served.generate(LONG_TEXT, "p0", **settings), expected[:1])
    assert_same(served.generate(LONG_TEXT, "p1", **settings), expected[1:])
    assert counts(served).scheduler["text_page_hits"] == 0
    assert_same(served.generate([LONG_TEXT] * 2, ["p0", "p1"], **settings), expected)
    assert counts(served).scheduler["text_page_hits"] > 0
    assert_at_rest(served)


def test_a_removed_prompt_leaves_nothing_behind() -> None:
    served = fresh(3)
    served.generate(["привет"] * 3, ["p0", "p1", "p2"], max_new_tokens=3)
    assert counts(served).scheduler["prefix_pages"] == 3 * num_pages(served, 20)
    for name in list(served.prompts):
        served.remove_prompt(name)
    found = counts(served)
    assert (found.scheduler["prefix_pages"], found.scheduler["prefixes"], found.prefix_cache.entries) == (0, 0, 0)
    assert_at_rest(served)


def test_names_with_equal_content_share_one_entry() -> None:
    served = fresh(1)
    served.add_prompt("twin", random_prompt(0))
    settings = {"max_new_tokens": 5, "do_sample": False, "output_scores": True}
    (first,) = served.generate("привет", "p0", **settings)
    (second,) = served.generate("привет", "twin", **settings)
    assert first.token_ids == second.token_ids
    assert (first.prompt, second.prompt) == ("p0", "twin")
    found = counts(served)
    assert found.prefix_cache.entries == 1
    assert (found.scheduler["prefix_misses"], found.scheduler["prefix_hits"]) == (1, 1)
    assert found.scheduler["prefix_pages"] == num_pages(served, 20)
    served.remove_prompt("p0")
    assert_same(served.generate("привет", "twin", **settings), [second])
    assert counts(served).scheduler["prefix_misses"] == 1
    assert_at_rest(served)


def test_warm_up_computes_prefixes_ahead() -> None:
    served = fresh(4)
    assert counts(served).scheduler["prefix_pages"] == 0
    served.warm_up(["p0", "p2"])
    assert counts(served).scheduler["prefix_pages"] == 2 * num_pages(served, 20)
    served.warm_up()
    warm = counts(served).scheduler
    assert (warm["resident_prefixes"], warm["prefix_pages"]) == (4, 4 * num_pages(served, 20))
    outputs = served.generate(["привет"] * 4, [f"p{index}" for index in range(4)], max_new_tokens=4, do_sample=False)
    cold = fresh(4).generate(["привет"] * 4, [f"p{index}" for index in range(4)], max_new_tokens=4, do_sample=False)
    assert [output.token_ids for output in outputs] == [output.token_ids for output in cold]
    used = counts(served).scheduler
    assert used["prefix_misses"] == warm["prefix_misses"]
    assert used["prefix_hits"] == warm["prefix_hits"] + 4
    assert_at_rest(served)


def test_warm_up_of_more_than_the_memory_holds() -> None:
    served = fresh(8, num_pages=5)
    served.warm_up()
    assert 0 < counts(served).scheduler["prefix_pages"] <= counts(served).num_pages < 8 * num_pages(served, 20)
    assert_at_rest(served)


@pytest.mark.cpu_backend("it is about the loading of prompts")
def test_a_thousand_prompts_cost_no_pages() -> None:
    served = case().serve()
    prompts = {f"p{index}": random_prompt(index, num_rows=100) for index in range(1000)}
    before = counts(served).scheduler["steps"]
    for name, prompt in prompts.items():
        served.add_prompt(name, prompt)
    found = counts(served)
    assert found.scheduler["steps"] == before
    assert (found.scheduler["prefix_pages"], found.scheduler["free_pages"]) == (0, found.num_pages)
    assert found.prefix_cache.host_bytes == 0
    (output,) = served.generate("да", "p777", max_new_tokens=2, eos_token_id=None)
    assert len(output.token_ids) == 2
    assert counts(served).scheduler["prefix_pages"] == 7
    assert_at_rest(served)
