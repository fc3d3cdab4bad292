"""Which settings of transformers' ``GenerationConfig`` the engine leaves to the transformers fallback."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import GenerationConfig

IMPLEMENTED = frozenset(
    {
        *("do_sample", "temperature", "top_h", "top_k", "top_p", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff"),
        *("num_beams", "length_penalty", "early_stopping", "num_return_sequences", "renormalize_logits"),
        *("repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "sequence_bias", "suppress_tokens"),
        *("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "remove_invalid_values"),
        *("exponential_decay_length_penalty", "eos_token_id", "stop_strings", "max_time", "output_scores"),
        *("max_new_tokens", "min_new_tokens", "max_length", "min_length"),
    }
)
"""Settings that :func:`sampling_params` or the caller that resolves the lengths reads."""

WITHOUT_EFFECT = {
    "pad_token_id": "nothing is padded",
    "bos_token_id": "an input is never empty",
    "decoder_start_token_id": "there is no decoder apart from the encoder",
    "use_cache": "the cache is the engine's own; results are the same",
    "cache_config": "read by transformers' caches only",
    "max_cache_len": "the size of transformers' static cache",
    "prefill_chunk_size": "the engine chunks inputs by itself",
    "compile_config": "speed only",
    "disable_compile": "speed only",
    "continuous_batching_config": "of transformers' own batching",
    "return_dict_in_generate": "the form of transformers' results",
    "transformers_version": "the version that wrote the file",
}
"""Settings that cannot change what is generated here, and why."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    # "quantized" is the one that changes results; these only place or size transformers' cache.
    "cache_implementation": (
        *("dynamic", "offloaded", "static", "offloaded_static", "sliding_window"),
        *("hybrid", "hybrid_chunked", "offloaded_hybrid", "offloaded_hybrid_chunked"),
    ),
    "guidance_scale": (1,),
    "encoder_repetition_penalty": (1,),
    "encoder_no_repeat_ngram_size": (0,),
    "diversity_penalty": (0,),
    "num_beam_groups": (1,),
    "low_memory": (False,),
    "penalty_alpha": (0,),
    "token_healing": (False,),
    "output_attentions": (False,),
    "output_hidden_states": (False,),
    "output_logits": (False,),
    "is_assistant": (False,),
    "use_mtp": (False,),
    # generate fills these in by itself; only an assistant or a prompt look-up reads them.
    "num_assistant_tokens": (20,),
    "num_assistant_tokens_schedule": ("constant",),
    "assistant_confidence_threshold": (0.4,),
    "assistant_lookbehind": (10,),
    "target_lookbehind": (10,),
}
"""Neutral values of other settings, besides None and the defaults of ``GenerationConfig``."""


def fallback_only_settings(config: GenerationConfig) -> list[str]:
    """Names of the settings in ``config`` that only transformers' ``generate`` can honour, sorted.

    Every attribute counts that is neither implemented nor known to have no effect, unless its value is neutral. So a
    setting that a newer transformers adds is never ignored.
    """
    from transformers import GenerationConfig

    default = vars(GenerationConfig())
    found = {
        name
        for name, value in vars(config).items()
        if not name.startswith("_")  # transformers' own bookkeeping
        and name not in IMPLEMENTED
        and name not in WITHOUT_EFFECT
        and value is not None
        and not (name in default and value == default[name])
        and value not in _NEUTRAL.get(name, ())
    }
    if config.do_sample and (config.num_beams or 1) > 1:
        found |= {"do_sample", "num_beams"}  # sampled beams
    return sorted(found)
