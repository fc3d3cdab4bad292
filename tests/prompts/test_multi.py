"""MultiPrompt: several prompts in one batch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from prompts.tiny import WIDTH, tiny_model
from torch import Tensor
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ruprompt_fast.errors import (
    AlreadyAttachedError,
    DuplicatePromptError,
    NotInitializedError,
    PromptInitError,
    PromptMismatchError,
    TemplateError,
    UnknownPromptError,
)
from ruprompt_fast.prompts import MultiPrompt, Prompt, PromptFormat, TensorPromptProvider

Tokenizer = PreTrainedTokenizerFast


def make(template: str) -> Prompt:
    return Prompt(PromptFormat(template), TensorPromptProvider("random", std=0.3))


@pytest.fixture
def prompts() -> MultiPrompt:
    return MultiPrompt({"one": make("<P>{text}<P>"), "two": make("<P*3>{text}")})


def alone(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: Prompt, text: str) -> Tensor:
    """The last logits of a request by itself, from embeddings put together by hand."""
    rows = list(prompt.rows())
    words = model.transformer.wte(torch.tensor(tokenizer(text).input_ids))
    first = 1 if prompt.format.template.startswith("<P>{") else 3
    embeddings = torch.cat([torch.stack(rows[:first]), words, *[row[None] for row in rows[first:]]])
    return model(inputs_embeds=embeddings[None]).logits[0, -1]


def last_logits(model: GPT2LMHeadModel, tokenizer: Tokenizer, texts: list[str]) -> Tensor:
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    positions = (batch.attention_mask.cumsum(-1) - 1).clamp(min=0)
    return model(**batch, position_ids=positions).logits[:, -1]


class TestMixing:
    def test_prompts_share_a_batch(self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompts.initialize(model, tokenizer)
        requests = [("one", "two"), ("two", "to"), ("one", "on"), ("two", "ten to")]
        expected = [alone(model, tokenizer, prompts.prompts[key], text) for key, text in requests]
        prompts.attach(model, tokenizer)
        found = last_logits(model, tokenizer, [prompts(key, text) for key, text in requests])
        assert torch.allclose(found, torch.stack(expected), atol=1e-5)

    def test_texts(self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompts.patch(model, tokenizer)
        assert prompts("one", "x") == "<|[one]P|>x<|[one]P|>"
        assert prompts(key="two", text="x") == "<|[two]P|>" * 3 + "x"
        assert prompts("one", text="x", return_ranges=True)[1] == {"text": slice(10, 11)}
        with pytest.raises(UnknownPromptError, match=r"'three'; there are \['one', 'two'\]") as caught:
            prompts("three", "x")
        assert isinstance(caught.value, KeyError)

    def test_views(self, prompts: MultiPrompt) -> None:
        assert list(prompts.formats) == list(prompts.providers) == ["one", "two"]
        assert prompts.formats["one"] is prompts.prompts["one"].format
        assert prompts.providers["two"] is prompts.prompts["two"].provider


class TestStates:
    def test_initialization(self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        assert not prompts.is_initialized
        with pytest.raises(NotInitializedError, match=r"\['one', 'two'\]") as caught:
            prompts.attach(model, tokenizer)
        assert isinstance(caught.value, UserWarning)
        prompts.initialize(model, tokenizer)
        assert prompts.is_initialized
        prompts.attach(model, tokenizer)
        assert prompts.is_attached
        with pytest.raises(AlreadyAttachedError) as caught_again:
            prompts.attach(model, tokenizer)
        assert isinstance(caught_again.value, UserWarning)

    def test_detach(self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        original = model.get_input_embeddings()
        prompts.detach()
        for argument in (None, model):
            prompts.patch(model, tokenizer)
            prompts.detach(argument)
            assert model.get_input_embeddings() is original
            assert not prompts.is_attached

    def test_one_misfit_changes_nothing(
        self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer
    ) -> None:
        prompts.initialize(model, tokenizer)
        misfit = make("<P>{text}")
        misfit.initialize(tiny_model(n_embd=24), tokenizer)
        prompts.add_prompt("misfit", misfit)
        original = model.get_input_embeddings()
        with pytest.raises(PromptMismatchError):
            prompts.attach(model, tokenizer)
        assert model.get_input_embeddings() is original
        assert not prompts.is_attached
        assert tokenizer.get_added_vocab().keys().isdisjoint({"<|[one]P|>"})


class TestAdding:
    def test_sources(self, model: GPT2LMHeadModel, tokenizer: Tokenizer, tmp_path: Path) -> None:
        saved = make("<P*2>{text}")
        saved.initialize(model, tokenizer)
        saved.save_pretrained(tmp_path)
        prompts = MultiPrompt({"a": str(tmp_path), "b": tmp_path})
        prompts.attach(model, tokenizer)
        assert torch.equal(prompts.prompts["a"].rows(), saved.rows())
        for wrong in (3, None):
            with pytest.raises(PromptInitError, match="expected a Prompt"):
                prompts.add_prompt("c", wrong)

    def test_to_a_patched_model(self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompts.initialize(model, tokenizer)
        third = make("<P*3>{text}")
        third.initialize(model, tokenizer)
        expected = [
            alone(model, tokenizer, prompts.prompts["one"], "two"),
            alone(model, tokenizer, third, "two"),
        ]
        prompts.attach(model, tokenizer)
        layer = model.get_input_embeddings()
        prompts.add_prompt("three", third)
        assert model.get_input_embeddings() is layer
        found = last_logits(model, tokenizer, [prompts("one", "two"), prompts("three", "two")])
        assert torch.allclose(found, torch.stack(expected), atol=1e-5)

    def test_uninitialized_to_a_patched_model(
        self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer
    ) -> None:
        prompts.patch(model, tokenizer)
        prompts.add_prompt("three", make("<P>{text}"))
        assert prompts.prompts["three"].is_initialized
        assert prompts.prompts["three"].rows().shape == (1, WIDTH)
        assert last_logits(model, tokenizer, [prompts("three", "two")]).isfinite().all()

    def test_more_than_the_layer_has_room_for(
        self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer
    ) -> None:
        prompts.patch(model, tokenizer)
        before = last_logits(model, tokenizer, [prompts("one", "two")])
        assert prompts.ctx.embedding is not None
        tokenizer.add_tokens([f"<{i}>" for i in range(prompts.ctx.embedding.first_prompt_id)])
        prompts.add_prompt("late", make("<P>{text}"))
        assert prompts.ctx.embedding is model.get_input_embeddings()
        after = last_logits(model, tokenizer, [prompts("one", "two"), prompts("late", "on")])
        assert torch.allclose(after[:1], before, atol=1e-5)

    def test_keys(self, prompts: MultiPrompt) -> None:
        with pytest.raises(DuplicatePromptError, match="'one'") as caught:
            prompts.add_prompt("one", make("<P>"))
        assert isinstance(caught.value, UserWarning)
        with pytest.raises(DuplicatePromptError, match="already as 'two'"):
            prompts.add_prompt("three", prompts.prompts["two"])
        with pytest.raises(TemplateError, match="key"):
            prompts.add_prompt("P|>", make("<P>"))
        assert list(prompts.prompts) == ["one", "two"]

    def test_an_attached_prompt_keeps_its_marker(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt = Prompt(PromptFormat("<P*2>{text}"), TensorPromptProvider())
        prompt.patch(model, tokenizer)
        with pytest.raises(AlreadyAttachedError, match="detach"):
            MultiPrompt().add_prompt("one", prompt)
        assert prompt(text="a") == "<|P|><|P|>a"
        prompt.detach()
        MultiPrompt().add_prompt("one", prompt)
        assert prompt(text="a") == "<|[one]P|><|[one]P|>a"

    def test_a_misfit_is_not_added(self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompts.patch(model, tokenizer)
        misfit = Prompt(PromptFormat("<P>{text}"), TensorPromptProvider.from_pretrained(torch.rand(1, WIDTH + 1)))
        with pytest.raises(PromptMismatchError):
            prompts.add_prompt("misfit", misfit)
        assert list(prompts.prompts) == ["one", "two"]
        assert misfit.format.key is None
        assert last_logits(model, tokenizer, [prompts("one", "two")]).isfinite().all()

    def test_after_another_prompt_took_the_model(
        self, prompts: MultiPrompt, model: GPT2LMHeadModel, tokenizer: Tokenizer
    ) -> None:
        prompts.patch(model, tokenizer)
        make("<P>{text}").patch(model, tokenizer)
        with pytest.raises(NotInitializedError, match="patch"):
            prompts.add_prompt("three", make("<P>{text}"))

    def test_empty(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompts = MultiPrompt()
        assert prompts.is_initialized
        prompts.patch(model, tokenizer)
        prompts.add_prompt("one", make("<P>{text}"))
        assert last_logits(model, tokenizer, [prompts("one", "two")]).isfinite().all()
