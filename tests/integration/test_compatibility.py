"""The compatibility check of a model that carries prompts already."""

from __future__ import annotations

import pytest
import torch
from tiny_models import sharp_model, tiny_model, tiny_tokenizer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ruprompt_fast import MultiPrompt, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.integration import check_compatibility, compatibility
from ruprompt_fast.integration.compatibility import _visible as visible


def test_markers_within_the_table_are_plain_ids() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    model.resize_token_embeddings(80)  # a padded vocabulary, as ruGPT-3 has
    prompts = {name: Prompt(PromptFormat("<P*2>{text}"), TensorPromptProvider()) for name in "ab"}
    MultiPrompt(prompts).patch(model, tokenizer)
    embedding = model.get_input_embeddings()
    assert {slot.marker_id for slot in embedding.slots} <= set(range(80))
    assert len(check_compatibility(model, embedding)) == 2
    markers = torch.tensor([[slot.marker_id for slot in embedding.slots]])
    with embedding.rows_for_call(embedding.weight.new_empty((0, 32))):
        assert torch.equal(embedding(markers), embedding.weight[markers])


def attached(model):
    MultiPrompt({"a": Prompt(PromptFormat("<P*2>{text}"), TensorPromptProvider())}).patch(model, tiny_tokenizer())
    return model.get_input_embeddings()


def scaled(family: str, part: str, factor: float, dtype: torch.dtype):
    model = sharp_model(family)
    with torch.no_grad():
        model.get_submodule(part).weight.mul_(factor)
    return model.to(dtype)


@pytest.mark.parametrize("part", ["model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj", "lm_head"])
def test_a_model_that_overflows_in_float16_is_told_apart_from_one_that_cannot_be_packed(part: str) -> None:
    model = scaled("llama", part, 1e5 if part == "lm_head" else 3e4, torch.float16)
    with pytest.raises(
        UnsupportedModelError, match="overflows in float16, which ends at 65504: .* in float32 .*bfloat16"
    ):
        check_compatibility(model, attached(model))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_dtype_passes(dtype: torch.dtype) -> None:
    model = sharp_model("gemma3").to(dtype)
    assert len(check_compatibility(model, attached(model))) == 2


def test_attention_that_leaves_a_softcap_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp_model("gemma2")
    assert len(check_compatibility(model, attached(model))) == 2
    # As in transformers 5.17, which newer versions refuse.
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]
    monkeypatch.setattr(type(model), "_supports_sdpa", True)
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", lambda *args, softcap=None, **kwargs: sdpa(*args, **kwargs))
    model.set_attn_implementation("sdpa")
    with pytest.raises(UnsupportedModelError, match='computes other logits .*soft cap.*attn_implementation="eager"'):
        check_compatibility(model, model.get_input_embeddings())


def test_nothing_is_copied_to_the_device_in_a_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    model = sharp_model("llama")
    embedding = attached(model)
    made = []
    monkeypatch.setattr(compatibility, "_visible", lambda window: made.append(window) or visible(window))
    check_compatibility(model, embedding)
    assert made == [None]


@pytest.mark.parametrize(("precision", "is_rounded"), [("highest", False), ("high", True)])
def test_float32_in_tf32_is_held_to_the_digits_that_it_has(precision: str, is_rounded: bool) -> None:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        on_card = compatibility._most_distance(torch.float32, torch.device("cuda", 0))
        on_cpu = compatibility._most_distance(torch.float32, torch.device("cpu"))
    finally:
        torch.set_float32_matmul_precision(before)
    assert on_card == compatibility._RELATIVE_ERROR[torch.float16 if is_rounded else torch.float32]
    assert on_cpu == compatibility._RELATIVE_ERROR[torch.float32]
