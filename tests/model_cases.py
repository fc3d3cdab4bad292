"""Prompts of different shapes for a tiny model."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ruprompt_fast import Prompt, PromptFormat, TensorPromptProvider

TEMPLATES = {
    "short": "<P*3>{text}",
    "around": "<P*7>{text}<P*4>",
    "fields": "<P*2>{question}? <P*5>{answer}<P>",
    "bare": "<P*6>",
}


def make_prompt(template: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, seed: int) -> Prompt:
    """A prompt of random rows, large enough to change what the model says."""
    torch.manual_seed(seed)
    prompt = Prompt(PromptFormat(template), TensorPromptProvider(init="random"))
    prompt.initialize(model, tokenizer)
    return prompt
