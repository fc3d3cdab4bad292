"""The layers of a frozen model compute the same in the other way, and are themselves again afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_models import FAMILIES, VOCAB, sharp_model
from tolerances import LOGITS_ERROR
from torch import Tensor, nn

from ruprompt_fast.integration import FrozenLayers

DECODERS = [family for family in FAMILIES if family != "t5"]


def logits_and_gradient(model: nn.Module) -> tuple[Tensor, Tensor]:
    embeds = torch.randn(2, 9, model.get_input_embeddings().weight.shape[1], generator=torch.Generator().manual_seed(0))
    embeds.requires_grad_()
    logits = model(inputs_embeds=embeds, use_cache=False).logits
    return logits.detach(), torch.autograd.grad(logits[..., :VOCAB].logsumexp(-1).sum(), embeds)[0]


@pytest.mark.parametrize("family", DECODERS)
def test_computes_the_same(family: str) -> None:
    model = sharp_model(family).requires_grad_(False)
    expected = logits_and_gradient(model)
    with FrozenLayers(model).fast():
        actual = logits_and_gradient(model)
    for one, other in zip(actual, expected, strict=True):
        assert (one - other).abs().max() <= LOGITS_ERROR


def test_layers_are_themselves_again() -> None:
    model = sharp_model("gpt2").requires_grad_(False)
    modules = dict(model.named_modules())
    layers = FrozenLayers(model)
    with layers.fast():
        assert "forward" in vars(model.transformer.h[0].mlp.c_fc)
    with pytest.raises(IndexError), layers.fast():
        model(torch.tensor([[10**6]]))
    assert dict(model.named_modules()) == modules
    assert not any("forward" in vars(module) for module in modules.values())


def test_linear_layers_that_would_not_be_faster_stay() -> None:
    """In half precision, as on a GPU, only activations are computed another way."""
    model = sharp_model("gpt2").requires_grad_(False).to(torch.float16)
    with FrozenLayers(model).fast():
        assert "forward" not in vars(model.transformer.h[0].mlp.c_fc)
        assert "forward" in vars(model.transformer.h[0].mlp.act)


def test_layers_that_train_keep_their_own_way() -> None:
    model = sharp_model("gpt2").requires_grad_(False)
    weight = model.transformer.h[0].mlp.c_fc.weight.requires_grad_()
    with FrozenLayers(model).fast():
        model(torch.arange(5)[None]).logits.sum().backward()
    assert weight.grad is not None
    assert weight.grad.any()


def test_a_forward_of_somebody_else_stays() -> None:
    model = sharp_model("gpt2").requires_grad_(False)
    layer = model.transformer.h[0].mlp.c_fc
    layer.forward = lambda x: torch.zeros(*x.shape[:-1], layer.nf)
    own = layer.forward
    expected = model(torch.arange(5)[None]).logits
    with FrozenLayers(model).fast():
        assert torch.allclose(model(torch.arange(5)[None]).logits, expected, atol=LOGITS_ERROR)
    assert layer.forward is own


def test_autocast_decides_the_dtype() -> None:
    model = sharp_model("gpt2").requires_grad_(False)
    with FrozenLayers(model).fast(), torch.autocast("cpu", torch.bfloat16):
        assert model.transformer.h[0].mlp.c_fc(torch.ones(2, 32)).dtype is torch.bfloat16
