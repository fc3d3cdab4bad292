"""A tiny model of each decoder family with prompts of different lengths."""

from __future__ import annotations

import pytest
from model_cases import TEMPLATES, make_prompt
from tiny_models import tiny_model, tiny_tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import FastPromptModel, Prompt


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return tiny_tokenizer()


@pytest.fixture(params=["gpt2", "llama", "gemma3", "opt", "t5"])
def base(request: pytest.FixtureRequest) -> PreTrainedModel:
    return tiny_model(request.param)


@pytest.fixture
def prompts(base: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> dict[str, Prompt]:
    return {
        name: make_prompt(template, base, tokenizer, seed) for seed, (name, template) in enumerate(TEMPLATES.items())
    }


@pytest.fixture
def served(base: PreTrainedModel, prompts: dict[str, Prompt], tokenizer: PreTrainedTokenizerFast) -> FastPromptModel:
    return FastPromptModel.from_pretrained(base, prompts=prompts, tokenizer=tokenizer)
