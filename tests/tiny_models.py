"""Tiny, randomly initialized models of the families that the drop-in embedding must work with."""

from __future__ import annotations

from collections.abc import Callable

import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 60
CONTEXT = 128

_COMMON = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _gpt2() -> PreTrainedModel:
    config = tf.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=CONTEXT, bos_token_id=1, eos_token_id=2
    )
    return tf.GPT2LMHeadModel(config)


def _gemma3() -> PreTrainedModel:
    config = tf.Gemma3TextConfig(**_COMMON, num_key_value_heads=1, head_dim=16, sliding_window=16)
    return tf.Gemma3ForCausalLM(config)


def _opt() -> PreTrainedModel:
    settings = {**_COMMON, "ffn_dim": 64, "word_embed_proj_dim": 16}
    settings.pop("intermediate_size")
    return tf.OPTForCausalLM(tf.OPTConfig(**settings))


def _t5() -> PreTrainedModel:
    config = tf.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=16, d_ff=64, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return tf.T5ForConditionalGeneration(config)


FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gpt2": _gpt2,
    "gpt_neox": lambda: tf.GPTNeoXForCausalLM(tf.GPTNeoXConfig(**_COMMON)),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_COMMON, num_key_value_heads=1)),
    "llama_tied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_COMMON, tie_word_embeddings=True)),
    "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**_COMMON, num_key_value_heads=1)),
    "gemma3": _gemma3,
    "opt": _opt,
    "t5": _t5,
}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family in evaluation mode, the same for the same seed."""
    torch.manual_seed(seed)
    return FAMILIES[family]().eval()


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: ``<pad> <s> </s> <unk>``, then letters; 60 tokens."""
    characters = " абвгдежзийклмнопрстуфхцчшщъыьэюя.,!?-<>|P{}[]*abcdef/"
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
