"""Wrong calls get named errors that say what to do, and change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from model_cases import make_prompt
from tiny_models import CONTEXT, tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, MultiPrompt, Prompt, PromptFormat, TensorPromptProvider, errors


@pytest.fixture
def base() -> PreTrainedModel:
    return tiny_model("gpt2")


def test_unknown_prompt_lists_the_loaded(served: FastPromptModel) -> None:
    with pytest.raises(errors.UnknownPromptError, match="around, bare, fields, short"):
        served.generate("а", prompt="joke")
    with pytest.raises(KeyError):
        served.remove_prompt("joke")
    with pytest.raises(errors.UnknownPromptError):
        served.prompts["joke"]


def test_missing_and_extra_fields(served: FastPromptModel) -> None:
    with pytest.raises(errors.MissingFieldError, match="answer"):
        served.generate({"question": "где"}, prompt="fields")
    with pytest.raises(errors.ExtraFieldError, match="mood"):
        served.generate({"question": "где", "answer": "тут", "mood": "x"}, prompt="fields")
    with pytest.raises(errors.MissingFieldError, match="question, answer"):
        served.generate("где", prompt="fields")
    with pytest.raises(errors.ExtraFieldError, match="без|without a prompt"):
        served.generate({"text": "а", "other": "б"})
    with pytest.raises(errors.FieldTypeError):
        served.generate({"text": 3}, prompt="short")
    with pytest.raises(errors.FieldTypeError, match="input 1"):
        served.generate(["а", 3], prompt="short")


def test_batch_shapes(served: FastPromptModel) -> None:
    with pytest.raises(errors.EmptyInputError):
        served.generate([])
    with pytest.raises(errors.BatchMismatchError, match="2 values for 3"):
        served.generate(["а", "б", "в"], prompt=["short", None])


def test_unknown_argument_names_the_nearest(served: FastPromptModel) -> None:
    with pytest.raises(errors.UnknownArgumentError, match="max_new_tokens"):
        served.generate("а", max_new_token=5)
    with pytest.raises(TypeError):
        served.generate("а", colour="red")


def test_longer_than_the_context(served: FastPromptModel) -> None:
    with pytest.raises(errors.ContextLengthError, match=f"context is {CONTEXT}"):
        served.generate(["а", "а" * CONTEXT], prompt="short", max_new_tokens=1)
    with pytest.raises(errors.ContextLengthError, match="at most 18"):
        served.generate("а" * 107, prompt="short", max_new_tokens=19)
    with pytest.raises(errors.ContextLengthError, match="max_length"):
        served.generate("а" * 20, prompt="short", max_length=10)
    assert served.generate("а" * 107, prompt="short", max_new_tokens=18)


def test_empty_text_starts_from_the_beginning_of_text(served: FastPromptModel) -> None:
    assert served.generate("", max_new_tokens=3)[0].token_ids
    assert served.generate("", prompt="short", max_new_tokens=3)[0].token_ids
    served.tokenizer.bos_token = None
    with pytest.raises(errors.EmptyInputError):
        served.generate("")


def test_prompt_of_another_width(served: FastPromptModel, tokenizer: PreTrainedTokenizerFast) -> None:
    wide = make_prompt("<P*3>{text}", tiny_model("opt"), tokenizer, seed=9)
    with pytest.raises(errors.PromptMismatchError, match="width 32"):
        served.add_prompt("wide", wide)
    assert "wide" not in served.prompts


def test_prompt_of_another_model(base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = make_prompt("<P*3>{text}", base, tokenizer, seed=9)
    prompt.config.pretrained_model_name = "sberbank-ai/rugpt3large_based_on_gpt2"
    base.config.name_or_path = "ai-forever/rugpt3small_based_on_gpt2"
    served = FastPromptModel.from_pretrained(base, tokenizer=tokenizer)
    served.add_prompt("joke", prompt)
    other = make_prompt("<P*3>{text}", tiny_model("llama", seed=5), tokenizer, seed=9)
    with pytest.raises(errors.PromptMismatchError, match="'other' was made for .*llama of width 32"):
        served.add_prompt("other", other)
    assert "other" not in served.prompts


def test_non_finite_rows(served: FastPromptModel, prompts: dict[str, Prompt]) -> None:
    rows = prompts["short"].provider.weights
    with torch.no_grad():
        rows[1, 2] = float("nan")
    with pytest.raises(errors.NonFiniteRowsError, match="'short'"):
        served.add_prompt("short", prompts["short"])
    with pytest.raises(errors.NonFiniteRowsError, match="'short'"):  # it is loaded, and has such rows now
        served.generate("а", prompt="short", max_new_tokens=2)
    with torch.no_grad():
        rows[1, 2] = 0.0
    assert served.generate("а", prompt="short", max_new_tokens=2)


def test_a_failed_load_leaves_the_model_alone(
    base: PreTrainedModel, prompts: dict[str, Prompt], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    original = base.get_input_embeddings()
    (tmp_path / "prompt.json").write_text("{not json", encoding="utf-8")
    with pytest.raises(errors.PromptFileError, match="prompt.json"):
        FastPromptModel.from_pretrained(base, prompts={**prompts, "broken": tmp_path}, tokenizer=tokenizer)
    assert base.get_input_embeddings() is original
    wide = make_prompt("<P*3>{text}", tiny_model("opt"), tokenizer, seed=9)
    with pytest.raises(errors.PromptMismatchError):
        FastPromptModel.from_pretrained(base, prompts={**prompts, "wide": wide}, tokenizer=tokenizer)
    assert base.get_input_embeddings() is original


def test_rows_must_fit_the_template(served: FastPromptModel, tokenizer: PreTrainedTokenizerFast) -> None:
    rows = torch.zeros(3, 32)
    prompt = Prompt(PromptFormat("<P*7>{text}", tokenizer=tokenizer), TensorPromptProvider.from_pretrained(rows))
    with pytest.raises(errors.PromptMismatchError, match=r"\[7, 32\]"):
        served.add_prompt("seven", prompt)


def test_a_model_that_lost_its_prompts(
    base: PreTrainedModel, served: FastPromptModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    make_prompt("<P*3>{text}", base, tokenizer, seed=9).attach(base, tokenizer)
    with pytest.raises(errors.DetachedModelError):
        served.generate("а", prompt="short")
    with pytest.raises(errors.DetachedModelError):
        served.classify("а", prompt="short", labels=["да", "нет"])


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beam_groups": 2, "num_beams": 2},
        {"penalty_alpha": 0.6},
        {"output_hidden_states": True},
        {"assistant_early_exit": 1},
        {"max_new_tokens": 0},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_that_cannot_work_are_named(served: FastPromptModel, setting: dict[str, object]) -> None:
    with pytest.raises(errors.SettingError, match=next(iter(setting))):
        served.generate("а", prompt="short", **setting)
    assert served.generate("а", prompt="short", max_new_tokens=1)


def test_arguments_of_other_types(base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(errors.SettingError, match="max_batch_size"):
        FastPromptModel.from_pretrained(base, tokenizer=tokenizer, max_batch_size=0)
    served = FastPromptModel.from_pretrained(base, tokenizer=tokenizer)
    with pytest.raises(errors.PromptInitError, match="int"):
        served.add_prompt("five", 5)
    with pytest.raises(errors.FieldTypeError):
        served.generate(None)
    with pytest.raises(errors.SettingError, match="dict"):
        served.generate("а", generation_config={"max_new_tokens": 3})


def test_a_multi_prompt_is_a_source_of_prompts(base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    prompts = MultiPrompt({"one": make_prompt("<P*3>{text}", base, tokenizer, seed=9)})
    served = FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer)
    assert list(served.prompts) == ["one"]


def test_a_patched_model_is_refused(base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    make_prompt("<P*3>{text}", base, tokenizer, seed=9).attach(base, tokenizer)
    with pytest.raises(errors.AlreadyAttachedError, match="detach"):
        FastPromptModel.from_pretrained(base, tokenizer=tokenizer)


def test_a_model_object_without_a_name_needs_its_tokenizer(base: PreTrainedModel) -> None:
    with pytest.raises(errors.UnsupportedModelError, match="tokenizer"):
        FastPromptModel.from_pretrained(base)


def test_labels(served: FastPromptModel) -> None:
    for labels in (["да"], "да", ["да", ""], ["да", "да"]):
        with pytest.raises(errors.LabelError):
            served.classify("а", prompt="short", labels=labels)
    with pytest.raises(errors.ContextLengthError):
        served.classify("а" * (CONTEXT - 4), prompt="short", labels=["да", "нет"])
    assert served.classify("а" * (CONTEXT - 3), prompt="short", labels=["д", "н"])


def test_removed_and_replaced_prompts(served: FastPromptModel, prompts: dict[str, Prompt]) -> None:
    before = served.generate("привет", prompt="short", max_new_tokens=10)[0].token_ids
    served.add_prompt("short", prompts["around"])
    assert served.generate("привет", prompt="short", max_new_tokens=10)[0].token_ids != before
    served.remove_prompt("short")
    assert sorted(served.prompts) == ["around", "bare", "fields"]
    with pytest.raises(errors.UnknownPromptError):
        served.generate("привет", prompt="short")


def test_prompts_view_is_read_only(served: FastPromptModel, prompts: dict[str, Prompt]) -> None:
    with pytest.raises(TypeError):
        served.prompts["new"] = prompts["short"]
    assert dict(served.prompts) == prompts


def test_tokenizer_is_not_changed(served: FastPromptModel) -> None:
    served.generate("<P> {text} <|P|>", prompt="short", max_new_tokens=2)
    assert len(served.tokenizer) == len(tiny_tokenizer())
