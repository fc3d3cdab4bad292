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


_OLD_NAMES = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 2,
    "n_positions": CONTEXT,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_DYNAMIC_ROPE = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}


def _gpt2() -> PreTrainedModel:
    return tf.GPT2LMHeadModel(tf.GPT2Config(**_OLD_NAMES))


def _gpt_neo() -> PreTrainedModel:
    settings = {**_COMMON, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]}
    for name in ("num_hidden_layers", "num_attention_heads"):
        settings.pop(name)
    return tf.GPTNeoForCausalLM(tf.GPTNeoConfig(**settings, window_size=16))


def _falcon() -> PreTrainedModel:
    settings = {**_COMMON}
    settings.pop("intermediate_size")
    return tf.FalconForCausalLM(tf.FalconConfig(**settings))


# One layer that slides its window, which is shorter than the tests' longest texts, and one that does not.
_SLIDING = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}


def _gemma2() -> PreTrainedModel:
    config = tf.Gemma2Config(
        **_COMMON,
        **_SLIDING,
        num_key_value_heads=1,
        head_dim=16,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
        attn_implementation="eager",  # some versions default to sdpa, which leaves the cap of the scores out
    )
    return tf.Gemma2ForCausalLM(config)


def _gemma3() -> PreTrainedModel:
    config = tf.Gemma3TextConfig(**_COMMON, **_SLIDING, num_key_value_heads=1, head_dim=16)
    return tf.Gemma3ForCausalLM(config)


def _mistral() -> PreTrainedModel:
    return tf.MistralForCausalLM(tf.MistralConfig(**_COMMON, num_key_value_heads=1, sliding_window=13))


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
    "qwen3": lambda: tf.Qwen3ForCausalLM(tf.Qwen3Config(**_COMMON, num_key_value_heads=1, head_dim=16)),
    "mistral": _mistral,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "opt": _opt,
    "t5": _t5,
}

# Decoders that the engine cannot run: their attention is their own, or depends on the batch.
PADDED_FAMILIES: dict[str, Callable[[], PreTrainedModel]] = {
    "gptj": lambda: tf.GPTJForCausalLM(tf.GPTJConfig(**_OLD_NAMES, rotary_dim=8)),
    "gpt_neo": _gpt_neo,
    "bloom": lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2)),
    "falcon": _falcon,
    "mpt": lambda: tf.MptForCausalLM(tf.MptConfig(vocab_size=VOCAB, d_model=32, n_layers=2, n_heads=2)),
    "llama_dynamic": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**_COMMON, rope_parameters=_DYNAMIC_ROPE)),
}


def tiny_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A model of the family in evaluation mode, the same for the same seed."""
    torch.manual_seed(seed)
    return {**FAMILIES, **PADDED_FAMILIES}[family]().eval()


def sharp_model(family: str, seed: int = 0) -> PreTrainedModel:
    """A :func:`tiny_model` with weights so large that attention tells tokens apart and logits are of order 1."""
    model = tiny_model(family, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() == 2:
                is_table = any(part in name for part in ("embed", "wte", "wpe"))
                parameter.normal_(std=0.3 if is_table else 1.5 / parameter.shape[-1] ** 0.5)
            elif name.endswith("bias"):
                parameter.normal_(std=0.1)
    return model


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character: ``<pad> <s> </s> <unk>``, then letters; 60 tokens."""
    characters = " абвгдежзийклмнопрстуфхцчшщъыьэюя.,!?-<>|P{}[]*abcdef/"
    vocabulary = {token: index for index, token in enumerate(["<pad>", "<s>", "</s>", "<unk>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
