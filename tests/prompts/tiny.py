"""A GPT-2 of a few thousand weights and its tokenizer of 21 tokens."""

from __future__ import annotations

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

EOS = "<|endoftext|>"
WIDTH = 20


def tiny_config(**changes: int) -> GPT2Config:
    """The model's sizes."""
    sizes = {"vocab_size": 21, "n_embd": WIDTH, "n_layer": 3, "n_head": 4, "n_positions": 100}
    return GPT2Config(**{**sizes, **changes}, bos_token_id=20, eos_token_id=20)


def tiny_model(**changes: int) -> GPT2LMHeadModel:
    """A model with random weights, in evaluation mode."""
    return GPT2LMHeadModel(tiny_config(**changes)).eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs over the letters of a few words; what it does not know is ``<unk>``."""
    letters = ["<unk>", *"wonetxrTabcdi", "Ġ", "on", "tw", "te", "Ġo", "Ġt", EOS]
    merges = [("o", "n"), ("t", "w"), ("t", "e"), ("Ġ", "o"), ("Ġ", "t")]
    vocab = {token: index for index, token in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token=EOS, bos_token=EOS)
