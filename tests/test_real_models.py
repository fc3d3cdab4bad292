"""The trained weights of the tests load without a network, and the transformers fallback writes English with them."""

from __future__ import annotations

import copy

import pytest
import torch
from real_models import smollm2

from ruprompt_fast import FastPromptModel

pytestmark = pytest.mark.slow


def test_smollm2_writes_english() -> None:
    model, tokenizer = smollm2()
    assert model.dtype == torch.float32
    assert len(tokenizer) == model.config.vocab_size
    served = FastPromptModel.from_pretrained(copy.deepcopy(model), tokenizer=tokenizer)
    [output] = served.generate("The capital of France is", max_new_tokens=3, do_sample=False)
    assert output.text.startswith(" Paris")


def test_smollm2_is_a_plain_model() -> None:
    model = smollm2().model
    assert smollm2().model is model
    assert all(type(module).__module__.startswith(("torch.", "transformers.")) for module in model.modules())
    assert not getattr(model, "is_quantized", False)
    assert not any(parameter.requires_grad for parameter in model.parameters())
