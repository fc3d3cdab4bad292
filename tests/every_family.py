"""A tiny model of every family that transformers generates text with, made by shrinking its config's size fields."""

from __future__ import annotations

from typing import Any

import torch
import transformers as tf
from tiny_models import CONTEXT, VOCAB
from transformers import CONFIG_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

_WIDTH, _LAYERS, _HEADS, _WIDE, _EXPERTS = 32, 2, 2, 64, 4

# What configs call their sizes.
_SIZES = {
    "vocab_size": VOCAB,
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "embedding_size", "emb_dim", "word_embed_proj_dim"), _WIDTH),
    **dict.fromkeys(("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers"), _LAYERS),
    **dict.fromkeys(("decoder_layers", "num_decoder_layers", "num_encoder_layers"), _LAYERS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "num_key_value_heads"), _HEADS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), _HEADS),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "encoder_ffn_dim", "decoder_ffn_dim", "dff"), _WIDE),
    **dict.fromkeys(("n_inner", "ffn_hidden_size", "d_inner"), _WIDE),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), _WIDTH),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len"), CONTEXT),
    **dict.fromkeys(("head_dim", "d_kv"), _WIDTH // _HEADS),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), _EXPERTS),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk"), 2),
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}

# Sizes that depend on each other in ways of their own.
_LATENT = {"head_dim": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "num_key_value_heads": 2}
_OWN: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("deepseek_v3", "youtu"), _LATENT),
    # one layer of attention among linear ones
    **{name: {"num_hidden_layers": 4} for name in ("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text")},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "mamba_dt_rank": 4},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_chunk_size": 8, "mamba_d_state": 8},
    "mamba2": {"num_heads": 4, "head_dim": 16, "state_size": 8, "chunk_size": 8, "n_groups": 1},
    "gptj": {"rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "zaya": {"num_experts_per_tok": 1},
}

# Families without a tiny model here, by the reason.
NOT_TINY: dict[str, tuple[str, ...]] = {
    "it reads pictures, sound or speech: the text model inside is a family of its own, or none for texts alone": (
        "causal:emu3",
        "causal:fuyu",
        "causal:gemma3",
        "causal:gemma3n",
        "causal:gemma4",
        "causal:gemma4_unified",
        "causal:git",
        "causal:got_ocr2",
        "causal:llama4",
        "causal:mllama",
        "causal:moss_transcribe_diarize",
        "causal:musicgen",
        "causal:musicgen_melody",
        "causal:phi4_multimodal",
        "causal:qwen3_5",
        "causal:qwen3_5_moe",
        "causal:qwen4_exp",
        "seq2seq:audioflamingo3",
        "seq2seq:glmasr",
        "seq2seq:granite_speech",
        "seq2seq:granite_speech_plus",
        "seq2seq:moss_transcribe_diarize",
        "seq2seq:musicflamingo",
        "seq2seq:nemo_speechlm",
        "seq2seq:qwen2_audio",
        "seq2seq:qwen3_asr",
        "seq2seq:vibevoice_asr",
        "seq2seq:voxtral",
        "seq2seq:voxtral_realtime",
    ),
    "its config holds those of other models, whose sizes have no usual place": (
        "causal:blt",
        "causal:dbrx",
        "causal:dots3_note",
        "seq2seq:encoder-decoder",
        "seq2seq:t5gemma",
        "seq2seq:t5gemma2",
    ),
    "its sizes depend on each other in ways of their own": (
        "causal:axk1",
        "causal:bailing_hybrid",
        "causal:bamba",
        "causal:codegen",
        "causal:cohere_compass_text",
        "causal:deepseek_v4",
        "causal:dots1",
        "causal:dots3_note_text",
        "causal:gemma3n_text",
        "causal:gemma4_assistant",
        "causal:gemma4_text",
        "causal:gemma4_unified_assistant",
        "causal:gemma4_unified_text",
        "causal:granitemoehybrid",
        "causal:lfm2_moe",
        "causal:lfm3",
        "causal:mimo_v2_flash",
        "causal:nemotron_h",
        "causal:qwen4_exp_text",
        "causal:reformer",
        "causal:xlstm",
        "causal:zamba",
        "causal:zamba2",
    ),
    "some of its sizes are in no config field with a usual name, and it stays large": (
        "causal:deepseek_v32",
        "causal:glm_moe_dsa",
        "causal:hy_v4",
        "causal:kimi_linear",
        "causal:longcat_flash",
        "causal:roc_bert",
    ),
    "it wants a language to be set before every call": ("causal:xmod",),
}

LARGEST = 3_000_000
"""Parameters of a model that is still tiny."""


def family_names() -> list[str]:
    """Every family with a tiny model, ``causal:NAME`` or ``seq2seq:NAME``."""
    mappings = {"causal": MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "seq2seq": MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES}
    left_out = {family for families in NOT_TINY.values() for family in families}
    every = [f"{kind}:{name}" for kind, mapping in mappings.items() for name in mapping]
    return [family for family in every if family not in left_out]


def tiny_config(name: str) -> PretrainedConfig:
    """The family's config with every size field that has a known name made small."""
    config_class = CONFIG_MAPPING[name]
    usual = config_class()
    sizes = {field: size for field, size in _SIZES.items() if isinstance(_field(usual, field), int | None)}
    known = {field: size for field, size in sizes.items() if field in vars(usual) or field in usual.attribute_map}
    starts = {"decoder_start_token_id": 1} if usual.is_encoder_decoder else {}
    return config_class(**{**known, **starts, **_OWN.get(name, {})})


def _field(config: PretrainedConfig, name: str) -> Any:
    return getattr(config, name, None)


def build(family: str, seed: int = 0) -> PreTrainedModel:
    """A tiny model with weights so large that attention tells tokens and positions apart.

    Raises:
        ValueError: the shrunk config still describes something large.
    """
    kind, name = family.split(":")
    mapping = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES if kind == "causal" else MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    entry = mapping[name]
    model_class = getattr(tf, entry[0] if isinstance(entry, tuple) else entry)
    config = tiny_config(name)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in model_class(config).parameters())
    if size > LARGEST:
        raise ValueError(f"{size} parameters")
    torch.manual_seed(seed)
    model = model_class(config).eval()
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if parameter.dim() == 2 and "A_log" not in path:
                is_table = parameter.shape[0] in (VOCAB, CONTEXT) or "embed" in path
                parameter.normal_(std=0.3 if is_table else 1.0 / parameter.shape[-1] ** 0.5)
    return model
