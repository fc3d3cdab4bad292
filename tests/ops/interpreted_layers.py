"""Whole models with the kernels of their layers; run by test_kernels_interpreted.py, or with TRITON_INTERPRET=1."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny_models import sharp_model
from tolerances import relative_error

from ruprompt_fast.backends.cuda.layers import prepare_layers
from ruprompt_fast.ops.cuda.cards import V100, Card


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3"])
def test_norms_and_residuals(family: str) -> None:
    model, ids = sharp_model(family), torch.arange(3, 8)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        prepare_layers(model, None, V100)
        assert relative_error(model(ids).logits, expected) <= 2e-6


@pytest.mark.parametrize(("card", "num_tokens"), [(V100, 2), (Card("H100", (9, 0)), 5)], ids=["rows", "tile"])
def test_int8(card: Card, num_tokens: int) -> None:
    model, ids = sharp_model("gpt2").half(), torch.arange(3, 3 + num_tokens)[None]
    model.lm_head = copy.deepcopy(model.lm_head)  # a tied one would come back as it was
    prepared = prepare_layers(model, "int8", card)
    with torch.inference_mode():
        actual = model(ids).logits
        prepared.undo()
        assert relative_error(actual, model(ids).logits) <= 2e-3
