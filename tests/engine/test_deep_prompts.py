"""Deep prompts in the engine: what transformers computes after a cache that holds their keys and values."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from engine.reference import END, Case, Reference, assert_at_rest, counts, num_pages
from tiny_models import sharp_model, tiny_model, tiny_tokenizer
from tolerances import LOGITS_ERROR, LOGPROB_ERROR
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, PrefixTuningProvider, Prompt, PromptFormat
from ruprompt_fast.errors import (
    ContextLengthError,
    EmptyInputError,
    PromptMismatchError,
    SettingError,
    TemplateError,
    UnsupportedModelError,
)
from ruprompt_fast.prompts import KVShape

pytestmark = pytest.mark.every_backend

FAMILIES = ["gpt2", "gpt_neox", "llama", "qwen2", "gemma3"]
# A part of a page, a page, and more than the sliding windows.
DEEP = {"deep": "<P*5>{text}", "deep page": "<P*16>{text}? ответ:", "deep long": "<P*37>"}
REQUESTS: list[tuple[str, str | None]] = [
    ("привет, как дела", "deep"),
    ("под ковром лежит ключ", "deep long"),
    ("да", "around"),
    ("а", "deep page"),
    ("ещё один пример, подлиннее остальных!", "deep"),
    ("ещё один пример, подлиннее остальных!", None),
    ("где ключ", "deep page"),
    ("а", "deep long"),
    ("привет, как дела", "leading"),
]
TEXTS = [text for text, _ in REQUESTS]
NAMES = [name for _, name in REQUESTS]
GREEDY: dict[str, Any] = {"max_new_tokens": 16}
BEAMS: dict[str, Any] = {"max_new_tokens": 10, "num_beams": 3, "num_return_sequences": 2}


def deep_prompt(
    template: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int = 0, noise: float = 0.3
) -> Prompt:
    """A prompt that starts from real tokens and has been moved away from them."""
    prompt = Prompt(PromptFormat(template), PrefixTuningProvider(seed=seed))
    prompt.initialize(model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weights = prompt.provider.weights
        weights += noise * weights.std() * torch.randn(weights.shape, generator=generator)
    return prompt


class DeepReference(Reference):
    """Transformers after a cache that is filled with a deep prompt's keys and values; one request at a time."""

    def _ids(self, text: str, name: str) -> list[int]:
        template = self.prompts[name].format.template
        text = f"{text}? ответ:" if "ответ" in template else text
        return self.tokenizer(text)["input_ids"]

    def _cache(self, name: str, copies: int = 1) -> DynamicCache:
        cache = DynamicCache()
        for layer, pair in enumerate(self.prompts[name].provider.keys_values()):
            cache.update(*(part.detach().transpose(0, 1)[None].repeat(copies, 1, 1, 1) for part in pair), layer)
        return cache

    def logits(self, text: str, name: str | None, new_ids: Sequence[int] = ()) -> Tensor:
        if name not in DEEP:
            return super().logits(text, name, new_ids)
        input_ids = torch.tensor([[*self._ids(text, name), *new_ids]])
        with torch.no_grad():
            logits = self.model(input_ids=input_ids, past_key_values=self._cache(name)).logits
        return logits[0, -len(new_ids) - 1 :].float()

    def generate(self, text: str, name: str | None, **settings: Any) -> list[list[int]]:
        if name not in DEEP:
            return super().generate(text, name, **settings)
        cache = self._cache(name, settings.get("num_beams", 1))
        # Transformers skips as many ids as the cache holds positions.
        input_ids = torch.tensor([[0] * cache.get_seq_length() + self._ids(text, name)])
        ids = self.model.generate(
            input_ids=input_ids,
            attention_mask=torch.ones_like(input_ids),
            past_key_values=cache,
            suppress_tokens=self.unused or None,
            eos_token_id=END,
            pad_token_id=self.tokenizer.pad_token_id,
            do_sample=False,
            **settings,
        )
        new = [row[input_ids.shape[1] :] for row in ids.tolist()]
        return [row[: row.index(END) + 1] if END in row else row for row in new]


class DeepCase(Case):
    """A case with deep prompts among the others."""

    def __init__(self, family: str) -> None:
        super().__init__(family)
        for seed, (name, template) in enumerate(DEEP.items()):
            self.prompts[name] = deep_prompt(template, self.base, self.tokenizer, seed)
        self.reference = DeepReference(self.base, self.tokenizer, self.prompts)


@functools.cache
def case(family: str) -> DeepCase:
    return DeepCase(family)


@functools.cache
def expected_ids(family: str, *settings: tuple[str, Any]) -> list[list[int]]:
    reference = case(family).reference
    return [ids for text, name in REQUESTS for ids in reference.generate(text, name, **dict(settings))]


def assert_equals_transformers(served: FastPromptModel, family: str, settings: dict[str, Any]) -> None:
    outputs = served.generate(TEXTS, NAMES, do_sample=False, eos_token_id=END, **settings)
    assert [output.token_ids for output in outputs] == expected_ids(family, *settings.items())


@pytest.mark.parametrize(("family", "max_step_tokens"), [*((family, 7) for family in FAMILIES), ("gemma3", 64)])
def test_text_and_logits_of_mixed_prompts(family: str, max_step_tokens: int) -> None:
    served = case(family).serve(max_step_tokens=max_step_tokens)
    assert_equals_transformers(served, family, GREEDY)
    sampled = {"do_sample": True, "top_k": 0, "output_scores": True, "max_new_tokens": 12, "eos_token_id": None}
    for output, (text, name) in zip(served.generate(TEXTS, NAMES, seed=1, **sampled), REQUESTS, strict=True):
        expected = case(family).reference.logprobs(text, name, output.token_ids)
        assert output.logprobs == pytest.approx(expected, abs=LOGITS_ERROR)
    assert_at_rest(served)


def test_the_prompt_changes_what_is_generated() -> None:
    text, name = REQUESTS[0]
    reference = case("llama").reference
    assert (reference.logits(text, name) - reference.logits(text, None)).abs().max() > 0.1


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_beams(family: str) -> None:
    served = case(family).serve(max_step_tokens=16)
    assert_equals_transformers(served, family, BEAMS)
    assert_at_rest(served)


def test_preemption_and_eviction() -> None:
    """Given keys and values come back from the host, whatever its budget; nothing computes them."""
    served = case("gpt2").serve(num_pages=8, max_step_tokens=16, host_cache_bytes=0)
    long = {"max_new_tokens": 30}
    for _ in range(2):
        assert_equals_transformers(served, "gpt2", long)
        assert_at_rest(served)
    found = counts(served)
    assert found.scheduler["preemptions"] > 0
    assert found.scheduler["prefix_evictions"] > 0
    assert found.prefix_cache.loads > 3
    assert found.prefix_cache.host_entries == 3
    assert (
        found.prefix_cache.pinned_host_bytes == sum(num_pages(served, rows) for rows in (5, 16, 37)) * found.page_bytes
    )


def test_sampling_does_not_depend_on_the_batch() -> None:
    served = case("qwen2").serve(max_step_tokens=16)
    settings = {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 12, "eos_token_id": None}
    together = served.generate(TEXTS, NAMES, seed=7, **settings)
    for index in (0, 3, 7):
        alone = served.generate(TEXTS[index], NAMES[index], seed=7, **settings)
        assert [output.token_ids for output in alone] == [
            output.token_ids for output in together[2 * index : 2 * index + 2]
        ]


def test_streams() -> None:
    served = case("llama").serve()
    (output,) = served.generate(*REQUESTS[0], do_sample=False, eos_token_id=END, **GREEDY)
    assert "".join(served.stream(*REQUESTS[0], do_sample=False, eos_token_id=END, **GREEDY)) == output.text


def test_classification() -> None:
    served = case("llama").serve()
    labels = {" да": None, " нет": None}
    reference = case("llama").reference
    for text, name in REQUESTS[:4]:
        for label in labels:
            ids = served.tokenizer(label)["input_ids"]
            logprobs = reference.logits(text, name, ids[:-1]).log_softmax(-1)
            labels[label] = float(logprobs[range(len(ids)), ids].sum())
        expected = torch.tensor(list(labels.values())).softmax(-1)
        (output,) = served.classify(text, name, labels=list(labels))
        assert list(output.probabilities.values()) == pytest.approx(expected.tolist(), abs=LOGPROB_ERROR)


INT8 = pytest.param({"quantization": "int8"}, marks=pytest.mark.cpu_backend("the other one quantizes nothing"))


@pytest.mark.parametrize("precision", [INT8, {"dtype": torch.bfloat16}], ids=["int8", "bfloat16"])
def test_other_precisions(precision: dict[str, Any]) -> None:
    """Rounding moves the verdict a little; without the prompt it would be another."""
    base, tokenizer = sharp_model("llama"), tiny_tokenizer()
    prompt = deep_prompt("<P*20>{text}", base, tokenizer)
    labels = list("абвгдежз")
    found = []
    for options, name in (({}, "deep"), (precision, "deep"), ({}, None)):
        model = FastPromptModel.from_pretrained(
            copy.deepcopy(base), {"deep": prompt}, tokenizer, kv_cache_bytes=1 << 20, **options
        )
        assert model.stats().path == "engine"
        (output,) = model.classify("привет", name, labels=labels)
        found.append(torch.tensor(list(output.probabilities.values())))
    expected, rounded, plain = found
    assert (rounded - expected).abs().sum() < 0.3 * (plain - expected).abs().sum()


class TestLoading:
    def test_warming_up(self) -> None:
        served = case("gpt2").serve()
        served.warm_up(["deep", "deep page"])
        found = counts(served)
        assert found.prefix_cache.loads == 2
        assert found.scheduler["prefix_pages"] == num_pages(served, 5) + num_pages(served, 16)
        assert_equals_transformers(served, "gpt2", GREEDY)
        assert counts(served).prefix_cache.loads == 3

    def test_equal_content_is_one_entry(self) -> None:
        served = case("gpt2").serve()
        served.add_prompt("again", case("gpt2").prompts["deep"])
        served.warm_up(["deep", "again"])
        assert counts(served).prefix_cache.entries == 1
        expected = case("gpt2").reference.generate(TEXTS[0], "deep", **GREEDY)
        (output,) = served.generate(TEXTS[0], "again", do_sample=False, eos_token_id=END, **GREEDY)
        assert [output.token_ids] == expected

    def test_replacing_and_removing(self) -> None:
        case_ = case("gpt2")
        served = case_.serve()
        served.warm_up(["deep"])
        served.add_prompt("deep", case_.prompts["deep long"])
        (output,) = served.generate(TEXTS[1], "deep", do_sample=False, eos_token_id=END, **GREEDY)
        assert [output.token_ids] == case_.reference.generate(TEXTS[1], "deep long", **GREEDY)
        served.add_prompt("deep", case_.prompts["leading"])
        (output,) = served.generate(TEXTS[1], "deep", do_sample=False, eos_token_id=END, **GREEDY)
        assert [output.token_ids] == case_.reference.generate(TEXTS[1], "leading", **GREEDY)
        for name in ("deep", "deep long", "deep page"):
            served.remove_prompt(name)
        assert counts(served).prefix_cache.pinned_host_bytes == 0
        assert_at_rest(served)

    def test_what_is_trained_later_is_served(self) -> None:
        case_ = case("gpt2")
        prompt = deep_prompt("<P*9>{text}", case_.base, case_.tokenizer)
        served = case_.serve()
        served.add_prompt("mine", prompt)
        before = served.generate(TEXTS[0], "mine", do_sample=False, **GREEDY)[0].token_ids
        with torch.no_grad():
            prompt.provider.weights *= -1
        after = served.generate(TEXTS[0], "mine", do_sample=False, **GREEDY)[0].token_ids
        served.add_prompt("mine", prompt)
        assert before != after == served.generate(TEXTS[0], "mine", do_sample=False, **GREEDY)[0].token_ids

    def test_a_saved_prompt_and_one_that_was_trained_through_a_network(self, tmp_path: Any) -> None:
        case_ = case("llama")
        prompt = Prompt(PromptFormat("<P*9>{text}"), PrefixTuningProvider(hidden_dim=8, seed=3))
        prompt.initialize(case_.base, case_.tokenizer)
        with torch.no_grad():
            for parameter in prompt.provider.parameters():
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        prompt.save_pretrained(tmp_path)
        served = case_.serve()
        served.add_prompt("trained", prompt)
        served.add_prompt("saved", tmp_path)
        outputs = served.generate([TEXTS[0]] * 2, ["trained", "saved"], do_sample=False, **GREEDY)
        assert outputs[0].token_ids == outputs[1].token_ids
        assert counts(served).prefix_cache.entries == 1


class TestInputs:
    def test_an_empty_text_starts_with_the_beginning_of_text(self) -> None:
        case_ = case("llama")
        served = case_.serve()
        (found,) = served.generate("", "deep", do_sample=False, eos_token_id=END, **GREEDY)
        (expected,) = case_.reference.generate("<s>", "deep", **GREEDY)
        assert found.token_ids == expected
        tokenizer = copy.deepcopy(case_.tokenizer)
        tokenizer.bos_token = None
        served = FastPromptModel.from_pretrained(served.detach(), prompts=served.prompts, tokenizer=tokenizer)
        with pytest.raises(EmptyInputError, match="no prompt but a deep one"):
            served.generate("", "deep")

    def test_rows_count_as_positions(self) -> None:
        served = case("gpt2").serve()
        text = "а" * 80
        served.generate(text, "deep long", max_new_tokens=128 - 37 - 80)
        with pytest.raises(ContextLengthError, match="input 0 has 117 tokens, virtual tokens included"):
            served.generate(text, "deep long", max_new_tokens=128 - 37 - 80 + 1)


class TestRefusals:
    def test_templates(self) -> None:
        case_ = case("gpt2")
        for template in ("{text}<P*5>", "кто <P*5>{text}", "<P*4>{text}<P>"):
            format = PromptFormat(template, tokenizer=case_.tokenizer)
            prompt = Prompt(format, case_.prompts["deep"].provider)
            with pytest.raises(TemplateError, match="one run at the very start"):
                case_.serve().add_prompt("wrong", prompt)

    def test_another_models_prompt(self) -> None:
        served = case("gpt2").serve()
        shape = KVShape(2, 1, 32)  # as many numbers, in one head
        provider = PrefixTuningProvider.from_pretrained(torch.rand(5, shape.row_width), shape)
        prompt = Prompt(PromptFormat("<P*5>{text}", tokenizer=served.tokenizer), provider)
        with pytest.raises(PromptMismatchError, match="2 layers of 1 heads of 32; this model has 2 layers of 2 heads"):
            served.add_prompt("wrong", prompt)
        assert "wrong" not in served.prompts

    def test_encoder_decoders(self) -> None:
        served = FastPromptModel(tiny_model("t5"), tiny_tokenizer())
        with pytest.raises(UnsupportedModelError, match="t5 is an encoder-decoder model"):
            served.add_prompt("deep", case("gpt2").prompts["deep"])

    def test_models_that_the_engine_cannot_run(self) -> None:
        base, tokenizer = tiny_model("gptj"), tiny_tokenizer()
        served = FastPromptModel(base, tokenizer)
        served.add_prompt("deep", deep_prompt("<P*5>{text}", base, tokenizer))
        reason = "only the engine serves, and this model takes transformers' own generate because GPTJ"
        for call in (
            lambda: served.generate("а", "deep"),
            lambda: served.stream("а", "deep"),
            lambda: served.classify("а", "deep", labels=["а", "б"]),
        ):
            with pytest.raises(UnsupportedModelError, match=reason):
                call()
        assert served.generate("а", max_new_tokens=1)[0].token_ids

    def test_settings_that_only_transformers_knows(self) -> None:
        served = case("gpt2").serve()
        for call in (served.generate, served.stream):
            with pytest.raises(SettingError, match="'deep' is a deep prompt.* of guidance_scale. Leave that out"):
                call(TEXTS[0], "deep", guidance_scale=2.0)
        with pytest.raises(SettingError, match="because of 40 sequences, more than max_batch_size=16"):
            served.generate(TEXTS[:2], ["leading", "deep"], num_beams=40)
