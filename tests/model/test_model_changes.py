"""Models that take the fallback, that have no numbers, and that are resized while prompts are attached."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from model_cases import make_prompt
from tiny_models import VOCAB, sharp_model, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from ruprompt_fast import FastPromptModel
from ruprompt_fast.embedding import detach_prompts
from ruprompt_fast.errors import FallbackWarning, UnsupportedModelError


@pytest.mark.parametrize("family", ["gptj", "t5", "bloom", "llama_dynamic"])
def test_the_fallback_is_said_once_with_its_reason(family: str) -> None:
    with pytest.warns(FallbackWarning) as found:
        served = FastPromptModel.from_pretrained(tiny_model(family), tokenizer=tiny_tokenizer())
    assert [served.stats().reason in str(warning.message) for warning in found] == [True]
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        served.generate("где", max_new_tokens=1)


def test_the_engine_is_not_warned_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FallbackWarning)
        FastPromptModel.from_pretrained(tiny_model("gpt2"), tokenizer=tiny_tokenizer())


@pytest.mark.parametrize("family", ["gpt2", "llama_tied", "gemma3", "opt", "t5"])
def test_resizing_is_refused_until_the_prompts_are_detached(family: str) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer()
    prompt = make_prompt("<P*3>{text}", model, tokenizer, 0)
    prompt.patch(model, tokenizer)
    before = {name: (value.shape, value.data_ptr()) for name, value in model.state_dict().items()}
    for changed in (model, model.base_model, copy.deepcopy(model)):
        with pytest.raises(UnsupportedModelError, match=r"detach\(\)"):
            changed.resize_token_embeddings(VOCAB + 5)
    assert {name: (value.shape, value.data_ptr()) for name, value in model.state_dict().items()} == before
    assert model.config.get_text_config().vocab_size == VOCAB
    detach_prompts(model)
    model.resize_token_embeddings(VOCAB + 5)
    assert model.get_input_embeddings().weight.shape[0] == VOCAB + 5
    assert torch.isfinite(model.get_input_embeddings().weight).all()


def test_a_model_without_numbers_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="meta"):
        FastPromptModel.from_pretrained(tiny_model("gpt2").to("meta"), tokenizer=tiny_tokenizer())


def test_weights_on_disk_take_the_fallback(tmp_path: Path) -> None:
    model = sharp_model("llama")
    expected = FastPromptModel.from_pretrained(model, tokenizer=tiny_tokenizer()).generate("где", max_new_tokens=4)
    tiny = sharp_model("llama")
    tiny.save_pretrained(tmp_path / "model")
    parts = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb", "lm_head"]
    places = {**dict.fromkeys(parts, "cpu"), "model.layers.1": "disk"}
    offloaded = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", device_map=places, offload_folder=tmp_path / "weights"
    )
    with pytest.warns(FallbackWarning, match="offloaded"):
        served = FastPromptModel.from_pretrained(offloaded, tokenizer=tiny_tokenizer())
    for _ in range(2):
        assert served.generate("где", max_new_tokens=4)[0].token_ids == expected[0].token_ids
    assert "".join(served.stream("где", max_new_tokens=4)) == expected[0].text


def test_a_served_model_is_resized_after_detach() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    served = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    with pytest.raises(UnsupportedModelError):
        model.resize_token_embeddings(VOCAB + 5)
    (before,) = served.generate("где", max_new_tokens=3)
    served.detach().resize_token_embeddings(VOCAB + 5)
    again = FastPromptModel.from_pretrained(model, tokenizer=tokenizer)
    assert again.generate("где", max_new_tokens=3)[0].token_ids == before.token_ids
