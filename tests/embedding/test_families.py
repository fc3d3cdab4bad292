"""The drop-in embedding in every model family, against inputs_embeds put together by hand."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import FAMILIES, VOCAB, tiny_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from ruprompt_fast import SplicedEmbedding
from ruprompt_fast.embedding import PromptSlot, attach_prompts, detach_prompts, original_embedding
from ruprompt_fast.errors import MarkerCountError, PromptMismatchError, TokenIdError

MARKER, OTHER_MARKER = VOCAB - 1, VOCAB + 3
ROWS, OTHER_ROWS = 5, 2


class Rows(nn.Module):
    """A provider of given rows."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.weights = nn.Parameter(rows)

    def forward(self) -> Tensor:
        return self.weights


@pytest.fixture(params=list(FAMILIES))
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


def patch(model: PreTrainedModel) -> tuple[SplicedEmbedding, Tensor, Tensor]:
    torch.manual_seed(1)
    width = model.get_input_embeddings().embedding_dim
    first, second = torch.randn(ROWS, width), torch.randn(OTHER_ROWS, width)
    slots = [PromptSlot(Rows(first.clone()), ROWS, MARKER), PromptSlot(Rows(second.clone()), OTHER_ROWS, OTHER_MARKER)]
    return attach_prompts(model, slots, OTHER_MARKER + 1), first, second


def by_hand(original: nn.Module, ids: Tensor, rows: dict[int, Tensor]) -> Tensor:
    """Embeddings of ids, the k-th marker of a sequence replaced by row k: one position after another."""
    embeds = []
    for sequence in ids.tolist():
        seen = dict.fromkeys(rows, 0)
        for token in sequence:
            if token in rows:
                embeds.append(rows[token][seen[token]])
                seen[token] += 1
            else:
                embeds.append(original(torch.tensor([token]))[0])
    return torch.stack(embeds).view(*ids.shape, -1)


def extra_inputs(model: PreTrainedModel) -> dict[str, Tensor]:
    return {"decoder_input_ids": torch.tensor([[0, 7, 8], [0, 9, 4]])} if model.config.is_encoder_decoder else {}


M, N = MARKER, OTHER_MARKER
MIXED = torch.tensor([[M, M, M, 3, 4, M, M, 7, 11], [0, 0, 0, N, 8, 9, 12, 13, N]])
RIGHT_PADDED = torch.tensor([[M, M, M, 3, 4, M, M, 7, 11], [N, 8, N, 9, 0, 0, 0, 0, 0]])


@pytest.mark.parametrize("ids", [MIXED, RIGHT_PADDED], ids=["left-padded", "right-padded"])
def test_mixed_batch_equals_inputs_embeds(model: PreTrainedModel, ids: Tensor) -> None:
    original = model.get_input_embeddings()
    embedding, first, second = patch(model)
    with torch.no_grad():
        embeds = by_hand(original, ids, {M: first, N: second})
        mask = (ids != 0).long()
        expected = model(inputs_embeds=embeds, attention_mask=mask, **extra_inputs(model)).logits
        assert torch.equal(embedding(ids), embeds)
        found = model(input_ids=ids, attention_mask=mask, **extra_inputs(model)).logits
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 5},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
    ],
    ids=["greedy", "sampling", "beams"],
)
def test_generate_equals_inputs_embeds(model: PreTrainedModel, settings: dict[str, object]) -> None:
    embedding, _, _ = patch(model)
    ids, mask = MIXED, (MIXED != 0).long()
    settings = {**settings, "max_new_tokens": 6, "suppress_tokens": [M], "pad_token_id": 0, "eos_token_id": None}
    torch.manual_seed(3)
    found = model.generate(input_ids=ids, attention_mask=mask, **settings)
    embeds = embedding(ids).detach()
    detach_prompts(model)
    torch.manual_seed(3)
    expected = model.generate(inputs_embeds=embeds, attention_mask=mask, **settings)
    assert torch.equal(found[:, -6:], expected[:, -6:])


def test_detach_gives_the_same_object_back(model: PreTrainedModel) -> None:
    modules = dict(model.named_modules())
    original = model.get_input_embeddings()
    patch(model)
    assert original_embedding(model) is original
    assert detach_prompts(model) is original
    assert dict(model.named_modules()) == modules
    assert all(model.get_submodule(name) is module for name, module in modules.items())


def test_tie_weights_after_patching(model: PreTrainedModel) -> None:
    patch(model)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    with torch.no_grad():
        before = model(input_ids=MIXED, **extra_inputs(model)).logits
        model.tie_weights()
        assert torch.equal(model(input_ids=MIXED, **extra_inputs(model)).logits, before)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert isinstance(model.get_input_embeddings(), SplicedEmbedding)


def test_save_pretrained_writes_the_base_model_only(model: PreTrainedModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "before")
    patch(model)
    model.save_pretrained(tmp_path / "after")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("before", "after"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    type(model).from_pretrained(tmp_path / "after")


def test_half_and_back_keeps_the_tables_together(model: PreTrainedModel) -> None:
    embedding, first, _ = patch(model)
    model.half()
    assert embedding(MIXED).dtype == torch.float16
    assert torch.equal(embedding(MIXED)[0, 0], first[0].half())
    model.float()
    assert original_embedding(model).weight is embedding.weight
    assert detach_prompts(model).weight.dtype == torch.float32


def test_state_dict_round_trip_and_deepcopy(model: PreTrainedModel) -> None:
    embedding, first, _ = patch(model)
    model.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)
    with torch.no_grad():
        embedding.prompt_providers[0].weights.zero_()
        assert torch.equal(twin.get_input_embeddings()(MIXED)[0, 0], first[0])
        assert not embedding(MIXED)[0, 0].any()


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_inputs_embeds(model: PreTrainedModel, checkpointing: bool) -> None:
    original = model.get_input_embeddings()
    model.requires_grad_(False)
    embedding, first, second = patch(model)
    if checkpointing:
        model.train()
        model.gradient_checkpointing_enable()
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        model.config.attention_dropout = 0.0
    leaves = [first.clone().requires_grad_(), second.clone().requires_grad_()]
    embeds = by_hand(original, MIXED, {M: leaves[0], N: leaves[1]})
    torch.manual_seed(0)
    model(inputs_embeds=embeds, use_cache=False, **extra_inputs(model)).logits.square().mean().backward()
    torch.manual_seed(0)
    model(input_ids=MIXED, use_cache=False, **extra_inputs(model)).logits.square().mean().backward()
    for provider, leaf in zip(embedding.prompt_providers, leaves, strict=True):
        error = (provider.weights.grad - leaf.grad).norm() / leaf.grad.norm()
        assert error < 1e-5
    assert original.weight.grad is None


def test_token_table_gradient_when_it_trains(model: PreTrainedModel) -> None:
    original = model.get_input_embeddings()
    embedding, _, _ = patch(model)
    weights = torch.randn(*MIXED.shape, original.embedding_dim)
    (embedding(MIXED) * weights).sum().backward()
    found = original.weight.grad.clone()
    original.weight.grad = None
    is_marker = (MIXED == M) | (MIXED == N)
    (original(torch.where(is_marker, 5, MIXED)) * weights * ~is_marker[..., None]).sum().backward()
    assert torch.allclose(found, original.weight.grad, rtol=1e-6, atol=1e-6)


def test_wrong_number_of_markers_is_an_error(model: PreTrainedModel) -> None:
    patch(model)
    with pytest.raises(MarkerCountError, match="3"):
        model(input_ids=torch.tensor([[M, M, M, 4]]), **extra_inputs(model))


def test_ids_outside_both_tables_are_named(model: PreTrainedModel) -> None:
    embedding, _, _ = patch(model)
    for bad in (VOCAB + 1, -1, embedding.first_prompt_id + ROWS + OTHER_ROWS):
        with pytest.raises(TokenIdError, match=str(bad)):
            embedding(torch.tensor([[4, bad]]))


def test_wrong_width_changes_nothing(model: PreTrainedModel) -> None:
    original = model.get_input_embeddings()
    with pytest.raises(PromptMismatchError, match="width"):
        attach_prompts(model, [PromptSlot(Rows(torch.zeros(3, 7)), 3, MARKER)], VOCAB)
    assert model.get_input_embeddings() is original


def test_direct_prompt_ids(model: PreTrainedModel) -> None:
    embedding, first, second = patch(model)
    ids = [*embedding.prompt_ids(1), 4, *embedding.prompt_ids(0)]
    found = embedding(torch.tensor(ids))
    assert torch.equal(found[:OTHER_ROWS], second)
    assert torch.equal(found[-ROWS:], first)


def test_compiled_embedding(model: PreTrainedModel) -> None:
    embedding, _, _ = patch(model)
    compiled = torch.compile(embedding, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(MIXED), embedding(MIXED))
