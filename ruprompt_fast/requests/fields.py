"""Every field of transformers' ``GenerationConfig``, and what its value may be.

Ranges that apply in some modes only, such as the temperature's, are checked where the mode is known
(:func:`~ruprompt_fast.requests.generation_settings.sampling_params`): configurations of models often hold a
temperature of 0 together with ``do_sample=False``. Fields that a newer transformers adds may have any plain value.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ruprompt_fast.errors import SettingError, shown
from ruprompt_fast.requests.values import (
    LARGEST_INT,
    MOST_ENDS,
    Limits,
    Reader,
    decay,
    flag,
    integer,
    number,
    one_of,
    opaque,
    plain,
    sequence_biases,
    sequences,
    strings,
    token,
    tokens,
    unsupported,
)

LARGEST_PENALTY = 1e6
"""Repetition penalties lie between this and its inverse, so that a score times a penalty fits float32."""

_LARGEST_GUIDANCE = 1e4
_LARGEST_TABLE = 1 << 20


def is_penalty(value: float) -> bool:
    """Whether scores can be multiplied by this and divided by it."""
    return 1 / LARGEST_PENALTY <= value <= LARGEST_PENALTY


PENALTY_RANGE = f"a number above 0, from {1 / LARGEST_PENALTY:g} to {LARGEST_PENALTY:g}"


def _watermarking(name: str, value: Any, limits: Limits) -> Any:
    """A configuration of transformers' watermarking, or the dict of one."""
    from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

    if not isinstance(value, (Mapping, WatermarkingConfig, SynthIDTextWatermarkingConfig)):
        raise SettingError(f"{name} must be transformers' WatermarkingConfig or a dict of one; found {shown(value)}.")
    try:
        config = WatermarkingConfig.from_dict(dict(value)) if isinstance(value, Mapping) else copy.copy(value)
        for field, entry in vars(config).items():
            found = opaque(f"{name}.{field}", entry, limits)
            if field in ("sampling_table_size", "context_history_size", "ngram_len", "context_width"):
                found = integer(1, _LARGEST_TABLE)(f"{name}.{field}", found, limits)
            setattr(config, field, found)
        config.validate()
    except SettingError:
        raise
    except Exception as error:  # transformers' own checks, of values that they do not expect
        raise SettingError(f"{name} cannot work: {shown(str(error), 500)}") from error
    return config


def _cache_implementation(name: str, value: Any, limits: Limits) -> str:
    if not isinstance(value, str) or value == "paged":
        raise SettingError(f"{name} must be the name of one of transformers' caches; found {shown(value)}.")
    return value


def _cache_config(name: str, value: Any, limits: Limits) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
        raise SettingError(f"{name} must be a dict; found {shown(value)}.")
    found: dict[str, Any] = opaque(name, value, limits)
    return found


def _compile_config(name: str, value: Any, limits: Limits) -> Any:
    from transformers import CompileConfig

    if not isinstance(value, CompileConfig):
        raise SettingError(f"{name} must be transformers' CompileConfig; found {shown(value)}.")
    return copy.copy(value)


def _of_another_call(name: str, value: Any, limits: Limits) -> None:
    """A setting that nothing here reads, whatever it holds."""
    found = plain(value)
    if isinstance(found, (bool, int, float, str, bytes, list, tuple, set)):
        raise SettingError(f"{name} must be a configuration object; found {shown(value)}.")


def _context(limits: Limits) -> int:
    return limits.context


def _is_share(value: float) -> bool:
    return 0.0 <= value <= 1.0


UNSUPPORTED = (
    "assistant_early_exit",
    "assistant_ensemble_weight",
    "constraints",
    "diversity_penalty",
    "dola_layers",
    "force_words_ids",
    "is_assistant",
    "low_memory",
    "num_beam_groups",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "penalty_alpha",
    "speculation_type",
    "token_healing",
    "use_mtp",
)
"""Settings that need another call of transformers' generate, an assistant, code from the hub, or a place in the output.
Values that count as false are accepted."""

_FIELDS: dict[str, Reader] = {
    **dict.fromkeys(UNSUPPORTED, unsupported()),
    "num_beam_groups": unsupported(1),
    # lengths
    "max_length": integer(1),
    "max_new_tokens": integer(1),
    "min_length": integer(0),
    "min_new_tokens": integer(0),
    "max_time": number(),
    "stop_strings": strings,
    # sampling; ranges count with do_sample only
    "do_sample": flag,
    "temperature": number(),
    "top_h": number(),
    "top_k": integer(),
    "top_p": number(),
    "min_p": number(),
    "typical_p": number(),
    "epsilon_cutoff": number(),
    "eta_cutoff": number(),
    # beams
    "num_beams": integer(1),
    "num_return_sequences": integer(1),
    "length_penalty": number(),
    "early_stopping": one_of(True, False, "never"),
    "renormalize_logits": flag,
    # scores
    "repetition_penalty": number(is_penalty, PENALTY_RANGE),
    "encoder_repetition_penalty": number(is_penalty, PENALTY_RANGE),
    "no_repeat_ngram_size": integer(0, _context),
    "encoder_no_repeat_ngram_size": integer(0, _context),
    "bad_words_ids": sequences,
    "sequence_bias": sequence_biases,
    "suppress_tokens": tokens(),
    "begin_suppress_tokens": tokens(),
    "forced_bos_token_id": token,
    "forced_eos_token_id": tokens(most=MOST_ENDS, scored=True),
    "remove_invalid_values": flag,
    "exponential_decay_length_penalty": decay,
    "guidance_scale": number(
        lambda value: abs(value) <= _LARGEST_GUIDANCE, f"a number of at most {_LARGEST_GUIDANCE:g} in size"
    ),
    "watermarking_config": _watermarking,
    # special tokens; a model's own configuration may have a padding token of -1
    "eos_token_id": tokens(most=MOST_ENDS),
    "pad_token_id": integer(),
    "bos_token_id": integer(),
    "decoder_start_token_id": token,
    # what comes back
    "output_scores": flag,
    "return_dict_in_generate": flag,
    # transformers' caches and speed
    "use_cache": flag,
    "cache_implementation": _cache_implementation,
    "cache_config": _cache_config,
    "max_cache_len": integer(1, _context),
    "prefill_chunk_size": integer(1),
    "compile_config": _compile_config,
    "disable_compile": flag,
    "continuous_batching_config": _of_another_call,
    # prompt look-up decoding
    "prompt_lookup_num_tokens": integer(1, _context),
    "max_matching_ngram_size": integer(1, _context),
    "num_assistant_tokens": integer(1, LARGEST_INT),
    "num_assistant_tokens_schedule": one_of("constant", "heuristic", "heuristic_transient"),
    "assistant_confidence_threshold": number(_is_share, "from 0 to 1"),
    "assistant_lookbehind": integer(1, _context),
    "target_lookbehind": integer(1, _context),
}


def read_field(name: str, value: Any, limits: Limits) -> Any:
    """The value of a setting as plain Python, a copy where it can be changed; None stays None.

    Raises:
        SettingError: it has a value that cannot work, or one that is not supported.
    """
    return None if value is None else _FIELDS.get(name, opaque)(name, value, limits)
