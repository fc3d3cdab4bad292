"""The compatibility check of a model that carries prompts already."""

from __future__ import annotations

import torch
from tiny_models import tiny_model, tiny_tokenizer

from ruprompt_fast import MultiPrompt, Prompt, PromptFormat, TensorPromptProvider
from ruprompt_fast.integration import check_compatibility


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
