from __future__ import annotations

import pytest
import torch
from prompts.tiny import tiny_model, tiny_tokenizer
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast


@pytest.fixture(autouse=True)
def _repeatable() -> None:
    torch.manual_seed(0)


@pytest.fixture
def model() -> GPT2LMHeadModel:
    return tiny_model()


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()
