"""Prompt: initialization, attaching, text form, defaults."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from prompts.tiny import WIDTH, tiny_model, tiny_tokenizer
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from ruprompt_fast.errors import (
    MissingFieldError,
    NotInitializedError,
    PromptInitError,
    PromptLengthError,
    PromptMismatchError,
)
from ruprompt_fast.prompts import (
    ModulePromptProvider,
    Prompt,
    PromptConfig,
    PromptFormat,
    TensorPromptProvider,
    freeze_model,
)
from ruprompt_fast.prompts.files.base_model import BaseModel

Tokenizer = PreTrainedTokenizerFast


@pytest.fixture
def prompt() -> Prompt:
    return Prompt(PromptFormat("<P*2>{text}<P>"), TensorPromptProvider())


def logits_by_hand(model: GPT2LMHeadModel, tokenizer: Tokenizer, prompt: Prompt, text: str) -> Tensor:
    """What the unpatched model gives for the embeddings put together here."""
    table = model.transformer.wte
    rows = prompt.rows()
    words = table(torch.tensor(tokenizer(text).input_ids))
    embeddings = torch.cat([rows[:2], words, rows[2:]])[None]
    return model(inputs_embeds=embeddings).logits


class TestInitialize:
    def test_everything_is_filled_in(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        assert prompt.config == PromptConfig()
        assert (prompt.is_initialized, prompt.is_attached) == (False, False)
        model.config.name_or_path = "some/model"
        prompt.initialize(model, tokenizer)
        assert (prompt.is_initialized, prompt.is_attached) == (True, False)
        base = BaseModel.of(model.config, model.transformer.wte.weight)
        assert prompt.config == PromptConfig(WIDTH, 3, "some/model", base_model=base)
        assert prompt.ctx.model is model
        assert prompt.ctx.tokenizer is tokenizer
        assert prompt.provider.is_initialized
        assert prompt.format.is_initialized
        assert "<|P|>" not in tokenizer.get_added_vocab()

    def test_rows_from_texts(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt = Prompt(PromptFormat("<P><P>tedon</P>{text}"), TensorPromptProvider())
        prompt.initialize(model, tokenizer)
        ids = tokenizer("tedon").input_ids
        assert torch.equal(prompt.rows()[1:], model.transformer.wte.weight[ids])

    def test_the_provider_learns_the_tokenizer(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        provider = TensorPromptProvider("text", text="on")
        prompt = Prompt(PromptFormat("<P*3>{text}"), provider)
        prompt.initialize(model, tokenizer)
        assert torch.equal(prompt.rows(), model.transformer.wte.weight[tokenizer("ononon").input_ids])

    def test_no_rows(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt = Prompt(PromptFormat("{text}"), TensorPromptProvider())
        with pytest.raises(PromptLengthError, match="at least one row"):
            prompt.patch(model, tokenizer)
        assert (prompt.is_initialized, prompt.is_attached) == (False, False)

    def test_made_for_another_width(self, prompt: Prompt, tokenizer: Tokenizer, tmp_path: Path) -> None:
        wide = tiny_model(n_embd=24)
        wide.config.name_or_path = "wide/model"
        prompt.initialize(wide, tokenizer)
        prompt.save_pretrained(tmp_path)
        loaded = Prompt.from_pretrained(tmp_path)
        model = tiny_model()
        original = model.get_input_embeddings()
        with pytest.raises(PromptMismatchError, match=r"\[3, 20\].*\[3, 24\].*wide/model"):
            loaded.patch(model, tokenizer)
        with pytest.raises(PromptMismatchError):
            loaded.attach(model, tokenizer)
        assert model.get_input_embeddings() is original
        assert not loaded.is_attached
        assert "<|P|>" not in tokenizer.get_added_vocab()

    def test_rows_of_another_template(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt = Prompt(PromptFormat("<P*2>{text}"), TensorPromptProvider.from_pretrained(torch.rand(3, WIDTH)))
        with pytest.raises(PromptMismatchError, match=r"\[2, 20\]; the prompt's are \[3, 20\]"):
            prompt.initialize(model, tokenizer)

    def test_a_loaded_prompt_keeps_its_models_name(
        self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        model.config.name_or_path = "some/model"
        prompt.initialize(model, tokenizer)
        prompt.save_pretrained(tmp_path)
        loaded = Prompt.from_pretrained(tmp_path)
        model.config.name_or_path = "/a/copy"
        loaded.patch(model, tokenizer)
        assert loaded.config.pretrained_model_name == "some/model"

    def test_again_for_a_second_copy_of_the_model(self, prompt: Prompt, tokenizer: Tokenizer) -> None:
        first = tiny_model()
        second = copy.deepcopy(first)
        prompt.patch(first, tokenizer)
        rows = prompt.rows()
        prompt.patch(second, tokenizer)
        assert torch.equal(prompt.rows(), rows)
        assert isinstance(first.get_input_embeddings(), nn.Embedding)
        assert not isinstance(second.get_input_embeddings(), nn.Embedding)

    def test_on_a_patched_model(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        """Rows are drawn from the model's own table, not from the layer of another prompt."""
        other = Prompt(PromptFormat("<P>{text}"), TensorPromptProvider())
        other.patch(model, tokenizer)
        prompt.initialize(model, tokenizer)
        table = prompt.rows()[:, None] == model.get_input_embeddings().weight[None]
        assert bool(table.all(dim=-1).any(dim=-1).all())


class TestAttach:
    def test_needs_initialization(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        with pytest.raises(NotInitializedError) as caught:
            prompt.attach(model, tokenizer)
        assert isinstance(caught.value, UserWarning)
        assert not prompt.is_attached

    def test_model_reads_rows_where_markers_stand(
        self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer
    ) -> None:
        prompt.initialize(model, tokenizer)
        expected = logits_by_hand(model, tokenizer, prompt, "two")
        prompt.attach(model, tokenizer)
        assert prompt.is_attached
        assert prompt.ctx.embedding is model.get_input_embeddings()
        found = model(**tokenizer(prompt(text="two"), return_tensors="pt")).logits
        assert torch.allclose(found, expected, atol=1e-6)

    def test_loaded_prompts_attach_without_initialization(
        self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer, tmp_path: Path
    ) -> None:
        prompt.initialize(model, tokenizer)
        expected = logits_by_hand(model, tokenizer, prompt, "two")
        prompt.save_pretrained(tmp_path)
        loaded = Prompt.from_pretrained(tmp_path)
        loaded.attach(model, tokenizer)
        found = model(**tokenizer(loaded("two"), return_tensors="pt")).logits
        assert torch.allclose(found, expected, atol=1e-6)

    def test_row_ids_of_encode_work_too(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt.patch(model, tokenizer)
        assert prompt.ctx.embedding is not None
        first = prompt.ctx.embedding.first_prompt_id
        ids = prompt.format.encode({"text": "two"}, tokenizer, first_row_id=first).input_ids
        by_text = model(**tokenizer(prompt("two"), return_tensors="pt")).logits
        assert torch.equal(model(torch.tensor([ids])).logits, by_text)

    def test_training_reaches_the_rows_only(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt.patch(model, tokenizer)
        assert freeze_model(model) == 3 * WIDTH
        batch = tokenizer(prompt("two"), return_tensors="pt")
        model(**batch).logits.sum().backward()
        trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
        assert len(trained) == 1
        assert all("prompt_provider" in name for name in trained)
        assert not model.lm_head.weight.requires_grad

    def test_again_is_silent(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        original = model.get_input_embeddings()
        prompt.patch(model, tokenizer)
        size = len(tokenizer)
        prompt.patch(model, tokenizer)
        prompt.attach(model, tokenizer)
        assert len(tokenizer) == size
        assert prompt.is_attached
        prompt.detach()
        assert model.get_input_embeddings() is original

    def test_a_misfit_changes_nothing(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt.patch(model, tokenizer)
        layer = model.get_input_embeddings()
        wide = tiny_model(n_embd=24)
        with pytest.raises(PromptMismatchError):
            prompt.attach(wide, tokenizer)
        assert model.get_input_embeddings() is prompt.ctx.embedding is layer
        assert prompt.is_attached
        assert isinstance(wide.get_input_embeddings(), nn.Embedding)

    def test_markers_beyond_the_model_vocabulary(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        tokenizer.add_tokens([f"<{i}>" for i in range(100)])
        prompt = Prompt(PromptFormat("<P>{text}"), TensorPromptProvider())
        prompt.patch(model, tokenizer)
        assert model(**tokenizer(prompt("two"), return_tensors="pt")).logits.isfinite().all()


class TestDetach:
    def test_original_module_comes_back(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        original = model.get_input_embeddings()
        prompt.detach()
        prompt.patch(model, tokenizer)
        prompt.detach()
        assert model.get_input_embeddings() is original
        assert not prompt.is_attached
        assert prompt.ctx.embedding is None
        assert prompt.is_initialized
        prompt.detach()

    def test_given_model(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        original = model.get_input_embeddings()
        prompt.patch(model, tokenizer)
        prompt.detach(model)
        assert model.get_input_embeddings() is original

    def test_another_prompt_is_left_alone(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt.patch(model, tokenizer)
        other = Prompt(PromptFormat("<P>{text}"), TensorPromptProvider())
        other.patch(model, tokenizer)
        prompt.detach()
        assert model.get_input_embeddings() is other.ctx.embedding
        assert other.is_attached


class TestUse:
    def test_text_form(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        prompt.initialize(model, tokenizer)
        expected = "<|P|><|P|>x<|P|>"
        assert prompt("x") == prompt(text="x") == prompt.format(text="x") == expected
        assert prompt("x", return_ranges=True) == (expected, {"text": slice(10, 11)})
        assert prompt(text="x", other="ignored") == expected
        with pytest.raises(MissingFieldError):
            prompt()

    def test_rows_are_a_copy(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        with pytest.raises(NotInitializedError):
            prompt.rows()
        prompt.initialize(model, tokenizer)
        rows = prompt.rows()
        assert rows.shape == (3, WIDTH)
        assert not rows.requires_grad
        rows.zero_()
        assert bool(prompt.rows().any())

    def test_as_dict(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        with pytest.raises(NotInitializedError):
            prompt.as_dict()
        prompt.initialize(model, tokenizer)
        assert prompt.as_dict() == {
            "format": prompt.format.as_dict(),
            "config": prompt.config.as_dict(),
            "base_model": prompt.config.base_model.as_dict(),
        }

    def test_any_module_as_provider(self, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        class Rows(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.scale = nn.Parameter(torch.ones(3, WIDTH))

            def forward(self) -> Tensor:
                return self.scale * 2

        prompt = Prompt(PromptFormat("<P*3>{text}"), Rows())
        assert isinstance(prompt.provider, ModulePromptProvider)
        prompt.patch(model, tokenizer)
        freeze_model(model)
        model(**tokenizer(prompt("two"), return_tensors="pt")).logits.sum().backward()
        assert prompt.provider.module.scale.grad is not None

    @pytest.mark.parametrize("arguments", [("<P>", TensorPromptProvider()), (PromptFormat("<P>"), "rows")])
    def test_wrong_parts(self, arguments: tuple[object, object]) -> None:
        with pytest.raises(PromptInitError) as caught:
            Prompt(*arguments)
        assert isinstance(caught.value, TypeError)


class TestDefaults:
    def test_model_and_tokenizer(self, prompt: Prompt, tmp_path: Path) -> None:
        tiny_model().save_pretrained(tmp_path)
        tiny_tokenizer().save_pretrained(tmp_path)
        model = GPT2LMHeadModel.from_pretrained(tmp_path)
        prompt.initialize(model, tiny_tokenizer())
        assert isinstance(prompt.get_default_model(), GPT2LMHeadModel)
        assert prompt.get_default_tokenizer().get_vocab() == tiny_tokenizer().get_vocab()

    def test_unknown(self, prompt: Prompt, model: GPT2LMHeadModel, tokenizer: Tokenizer) -> None:
        for _ in range(2):
            for load in (prompt.get_default_model, prompt.get_default_tokenizer):
                with pytest.raises(NotInitializedError, match="does not say which model"):
                    load()
            prompt.initialize(model, tokenizer)
