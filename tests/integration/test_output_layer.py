"""The output layer can be left out where logits are nothing more than it, and is there again afterwards."""

from __future__ import annotations

import pytest
import torch
from tiny_models import sharp_model
from tolerances import LOGITS_ERROR
from torch import nn

from ruprompt_fast.integration import OutputLayer

IDS = torch.arange(4, 13)[None]


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama", "llama_tied", "qwen2", "gemma3", "opt"])
def test_what_the_layer_reads_gives_the_logits(family: str) -> None:
    model = sharp_model(family).requires_grad_(False)
    layer = OutputLayer(model)
    assert layer.linear is model.get_output_embeddings()
    expected = model(IDS).logits
    with layer.left_out():
        inputs = model(IDS).logits
    logits = nn.functional.linear(inputs, layer.linear.weight, layer.linear.bias)
    assert (logits - expected).abs().max() <= LOGITS_ERROR
    assert torch.equal(model(IDS).logits, expected)


def test_logits_that_are_more_than_a_layer_stay() -> None:
    model = sharp_model("gemma2").requires_grad_(False)
    model.config.final_logit_softcapping = 1e3  # changes these logits in the sixth digit
    layer = OutputLayer(model)
    assert layer.linear is None
    expected = model(IDS).logits
    with layer.left_out():
        assert torch.equal(model(IDS).logits, expected)


def test_a_forward_of_somebody_else_stays() -> None:
    model = sharp_model("gpt2").requires_grad_(False)
    layer = OutputLayer(model)
    own = model.lm_head.forward = lambda x: torch.zeros(*x.shape[:-1], 3)
    with layer.left_out():
        assert model(IDS).logits.shape[-1] == model.config.n_embd
    assert model.lm_head.forward is own
    assert OutputLayer(model).linear is None
