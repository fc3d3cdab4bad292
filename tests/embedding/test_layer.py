"""The layer on its own: slots that come later, cached rows, other embedding modules, compilation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import tiny_model
from torch import Tensor, nn

from ruprompt_fast import SplicedEmbedding
from ruprompt_fast.embedding import PromptSlot, attach_prompts, detach_prompts
from ruprompt_fast.errors import PromptMismatchError, UnsupportedModelError


class Counted(nn.Module):
    """Rows from a parameter, counting how often they are computed."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(rows, width))
        self.calls = 0

    def forward(self) -> Tensor:
        self.calls += 1
        return self.weights * 2


def test_rows_are_computed_once_while_nothing_trains() -> None:
    provider = Counted(3, 8)
    embedding = SplicedEmbedding(nn.Embedding(10, 8), slots=[PromptSlot(provider, 3, marker_id=9)]).eval()
    ids = torch.tensor([[9, 9, 9, 1]])
    provider.calls = 0
    with torch.no_grad():
        first = embedding(ids)
        assert torch.equal(embedding(ids), first)
        assert provider.calls == 1
        provider.weights.mul_(3)
        assert torch.equal(embedding(ids)[0, :3], provider.weights * 2)
        embedding.half()
        assert torch.equal(embedding(ids)[0, :3], (provider.weights * 2).half())
    provider.calls = 0
    embedding(ids)
    embedding(ids)
    assert provider.calls == 2


def test_a_prompt_joins_a_live_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    first, second = Counted(2, 32), Counted(3, 32)
    embedding = attach_prompts(model, [PromptSlot(first, 2, marker_id=60)], min_first_prompt_id=61)
    before = embedding(torch.tensor([[60, 60, 5]]))
    ids = embedding.add_slot(PromptSlot(second, 3, marker_id=61))
    assert torch.equal(embedding(torch.tensor([[60, 60, 5]])), before)
    assert torch.equal(embedding(torch.tensor([[61, 4, 61, 61]]))[0, [0, 2, 3]], second())
    assert torch.equal(embedding(torch.tensor(list(ids))), second())
    model.save_pretrained(tmp_path)
    assert not any("prompt" in name for name in load_file(tmp_path / "model.safetensors"))


def test_a_marker_above_the_prompt_ids_is_refused() -> None:
    embedding = SplicedEmbedding(nn.Embedding(10, 8))
    with pytest.raises(PromptMismatchError, match="below"):
        embedding.add_slot(PromptSlot(Counted(3, 8), 3, marker_id=10))
    assert not embedding.slots


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(PromptMismatchError, match="4 rows"):
        SplicedEmbedding(nn.Embedding(10, 8), slots=[PromptSlot(Counted(3, 8), 4, marker_id=9)])


def test_a_module_without_a_table_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="Linear3"):
        SplicedEmbedding(type("Linear3", (nn.Module,), {})())


@pytest.mark.parametrize("options", [{"padding_idx": 2}, {"max_norm": 1.0}, {"scale_grad_by_freq": True}])
def test_embeddings_with_options(options: dict[str, object]) -> None:
    torch.manual_seed(0)
    original, reference = nn.Embedding(10, 8, **options), nn.Embedding(10, 8, **options)
    reference.load_state_dict(original.state_dict())
    provider = Counted(2, 8)
    embedding = SplicedEmbedding(original, slots=[PromptSlot(provider, 2, marker_id=9)])
    assert embedding.padding_idx == options.get("padding_idx")
    ids = torch.tensor([[9, 2, 2, 3, 9, 3, 3]])
    expected = reference(torch.tensor([[2, 2, 3, 3, 3]]))
    found = embedding(ids)
    assert torch.equal(found[0, [1, 2, 3, 5, 6]], expected[0])
    found[0, [1, 2, 3, 5, 6]].square().sum().backward()
    expected.square().sum().backward()
    assert torch.allclose(original.weight.grad, reference.weight.grad)


@pytest.mark.parametrize("family", ["gpt2", "gemma3"])
def test_a_compiled_model_trains_and_answers_alike(family: str) -> None:
    model = tiny_model(family).requires_grad_(False)
    provider = Counted(3, 32)
    attach_prompts(model, [PromptSlot(provider, 3, marker_id=59)], min_first_prompt_id=60)
    ids = torch.tensor([[59, 59, 59, 4, 5, 6], [7, 8, 59, 59, 59, 3]])
    plain = model(input_ids=ids, use_cache=False).logits
    plain.square().mean().backward()
    expected, provider.weights.grad = provider.weights.grad, None
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    logits = compiled(input_ids=ids, use_cache=False).logits
    logits.square().mean().backward()
    assert torch.allclose(logits, plain, atol=1e-5)
    assert torch.allclose(provider.weights.grad, expected, atol=1e-6)


class Noisy(nn.Module):
    """Rows with dropout while it trains."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.randn(rows, width))

    def forward(self) -> Tensor:
        return nn.functional.dropout(self.weights, 0.9, self.training)


def test_providers_follow_the_models_mode() -> None:
    model = tiny_model("gpt2")
    provider = Noisy(3, 32).train()
    embedding = attach_prompts(model, [PromptSlot(provider, 3, marker_id=59)])
    assert torch.equal(embedding(torch.tensor([[59, 59, 59]]))[0], provider.weights)


def test_attaching_again_replaces_the_prompts() -> None:
    model = tiny_model("llama")
    original = model.get_input_embeddings()
    attach_prompts(model, [PromptSlot(Counted(3, 32), 3, marker_id=59)])
    second = Counted(2, 32)
    embedding = attach_prompts(model, [PromptSlot(second, 2, marker_id=58)])
    assert embedding.original is original
    assert torch.equal(embedding(torch.tensor([[58, 58]]))[0], second())
    assert detach_prompts(model) is original
    assert detach_prompts(model) is original
