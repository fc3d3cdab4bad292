"""The models, words and prompts that the engine and its peers are timed with.

``RUPROMPT_BENCH_MODEL=large`` takes ruGPT-3 Large's shape instead of Small's. ``RUPROMPT_BENCH_QUICK=1`` shrinks
everything until all benchmarks run within a minute: for tests, not for numbers.
"""

from __future__ import annotations

import functools
import os
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ruprompt_fast import Prompt, PromptFormat, TensorPromptProvider

QUICK = bool(os.environ.get("RUPROMPT_BENCH_QUICK"))

_SIZES = {
    "small": {"n_embd": 768, "n_layer": 12, "n_head": 12},
    "large": {"n_embd": 1536, "n_layer": 24, "n_head": 16},
}
# ruGPT-3 Small's shape, or that of Large.
GPT2_SHAPE: dict[str, Any] = {
    "vocab_size": 50264,
    "n_positions": 2048,
    **_SIZES[os.environ.get("RUPROMPT_BENCH_MODEL", "small")],
}
if QUICK:
    GPT2_SHAPE.update(vocab_size=500, n_embd=32, n_layer=2, n_head=2)


@functools.cache
def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word: ``w0``, ``w1``, ... as many as the GPT-2 has."""
    vocabulary = {f"w{index}": index for index in range(GPT2_SHAPE["vocab_size"])}
    tokenizer = Tokenizer(tokenizer_models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def write_gpt2(folder: Path) -> list[str]:
    """Save random weights and a tokenizer of one token per word, neither with an end of text; returns the words."""
    word_tokenizer().save_pretrained(folder)
    random_gpt2().save_pretrained(folder)
    return all_words()


def random_gpt2() -> GPT2LMHeadModel:
    """Random weights, without an end of text; on the device and in the dtype that are torch's defaults."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**GPT2_SHAPE, bos_token_id=None, eos_token_id=None, name_or_path=""))


def all_words() -> list[str]:
    """The words of :func:`word_tokenizer`."""
    return sorted(word_tokenizer().get_vocab())


def single_token_words(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Lower-case English words that a byte-level tokenizer has as one token, with the space before them."""
    tokens = (token[1:] for token in tokenizer.get_vocab() if token.startswith("Ġ"))
    return sorted(token for token in tokens if len(token) >= 3 and token.isascii() and token.islower())


def text_of(words: list[str], num_tokens: int, generator: random.Random) -> str:
    """Random words; one token each, but for the first word of a tokenizer that knows it with a space only."""
    return " ".join(generator.choices(words, k=num_tokens))


def random_prompt(template: str, num_rows: int, seed: int) -> Prompt:
    """A prompt for the GPT-2; its rows are drawn like the model's token embeddings."""
    rows = torch.randn(num_rows, GPT2_SHAPE["n_embd"], generator=torch.Generator().manual_seed(seed)) * 0.02
    format = PromptFormat(template, tokenizer=word_tokenizer())
    return Prompt(format, TensorPromptProvider.from_pretrained(rows))
