"""Turns transformers' ``GenerationConfig`` into :class:`SamplingParams`: defaults and checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from ruprompt_fast.errors import SettingError, shown
from ruprompt_fast.requests.fields import read_field
from ruprompt_fast.requests.sampling_params import ExtraSettings, SamplingParams
from ruprompt_fast.requests.values import (
    LARGEST_BIAS,
    LARGEST_INT,
    Limits,
    flag,
    integer,
    is_int,
    logit_biases,
    number,
    plain,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig

_DEFAULTS: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "early_stopping": False,
    "length_penalty": 1.0,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
    "typical_p": 1.0,
    "epsilon_cutoff": 0.0,
    "eta_cutoff": 0.0,
    "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "output_scores": False,
    "remove_invalid_values": False,
    "renormalize_logits": False,
    "min_p": 0.0,
}
"""What transformers' ``generate`` takes where a setting is None."""

_LARGEST_POWER = 90
"""Bits of ``length ** length_penalty`` at most, so that beams' scores, down to -1e9, divided by it fit float32."""

_COLDEST = 1e-30
"""The lowest temperature: scores divided by less would overflow float32."""


def sampling_params(
    config: GenerationConfig,
    extras: ExtraSettings,
    *,
    min_new_tokens: int,
    max_new_tokens: int,
    seed: int,
    vocab_size: int | None = None,
) -> SamplingParams:
    """One request's settings, with transformers' defaults where ``config`` has None.

    Args:
        config: the merged generation settings; what :func:`fallback_only_settings` lists is not read.
        extras: settings that ``config`` has no place for.
        min_new_tokens: resolved from ``min_new_tokens`` and ``min_length``.
        max_new_tokens: resolved from ``max_new_tokens`` and ``max_length``.
        seed: the noise's seed where ``extras`` has none.
        vocab_size: token ids of the settings must be below it; None sets no limit.

    Raises:
        SettingError: a setting has a value that cannot work.
    """
    limits = Limits() if vocab_size is None else Limits(vocab_size)
    take = _Reader(config, limits)
    do_sample, num_beams, ends = take("do_sample"), take("num_beams"), tuple(take("eos_token_id") or ())
    sampled: dict[str, Any] = _sampled(take) if do_sample else {}
    extras = read_extras(extras, limits)
    strings = tuple(string for string in take("stop_strings") or () if string)
    params = SamplingParams(
        max_new_tokens=integer(1)("max_new_tokens", max_new_tokens, limits),
        min_new_tokens=integer(0)("min_new_tokens", min_new_tokens, limits),
        eos_token_ids=ends,
        stop_strings=strings,
        cut_strings=() if extras.include_stop_str_in_output else strings,
        logprobs=take("output_scores"),
        max_time=take.within("max_time", lambda value: value > 0, "a number of seconds above 0"),
        num_return_sequences=_num_returned(take("num_return_sequences"), do_sample, num_beams),
        do_sample=do_sample,
        seed=seed if extras.seed is None else extras.seed,
        num_beams=num_beams,
        length_penalty=_length_penalty(take("length_penalty"), num_beams, max_new_tokens),
        early_stopping=take("early_stopping"),
        renormalize_logits=take("renormalize_logits"),
        sequence_bias=tuple((take("sequence_bias") or {}).items()),
        logit_bias=tuple((extras.logit_bias or {}).items()),
        repetition_penalty=take("repetition_penalty"),
        presence_penalty=extras.presence_penalty,
        frequency_penalty=extras.frequency_penalty,
        no_repeat_ngram_size=take("no_repeat_ngram_size"),
        bad_words_ids=_bad_words(take("bad_words_ids") or [], ends),
        forced_bos_token_id=take("forced_bos_token_id"),
        forced_eos_token_ids=tuple(take("forced_eos_token_id") or ()),
        remove_invalid_values=take("remove_invalid_values"),
        exponential_decay_length_penalty=take("exponential_decay_length_penalty"),
        suppress_tokens=tuple(take("suppress_tokens") or ()),
        begin_suppress_tokens=tuple(take("begin_suppress_tokens") or ()),
        **sampled,
    )
    if params.exponential_decay_length_penalty is not None and not ends:
        raise SettingError("exponential_decay_length_penalty needs an eos_token_id to raise; there is none.")
    _check_forced(params)
    if vocab_size is not None:
        _check_some_left(params, vocab_size)
    return params


def read_extras(extras: ExtraSettings, limits: Limits) -> ExtraSettings:
    """The settings that transformers does not have, as plain Python.

    Raises:
        SettingError: one has a value that cannot work.
    """
    penalty = number(lambda value: abs(value) <= LARGEST_BIAS, f"a finite number of at most {LARGEST_BIAS:g} in size")
    return ExtraSettings(
        None if extras.seed is None else _seed(plain(extras.seed)),
        penalty("presence_penalty", extras.presence_penalty, limits),
        penalty("frequency_penalty", extras.frequency_penalty, limits),
        None if extras.logit_bias is None else logit_biases("logit_bias", extras.logit_bias, limits),
        flag("include_stop_str_in_output", extras.include_stop_str_in_output, limits),
    )


class _Reader:
    """Reads settings by name, with their defaults."""

    def __init__(self, config: GenerationConfig, limits: Limits) -> None:
        self._config = config
        self._limits = limits

    def __call__(self, name: str) -> Any:
        value = read_field(name, getattr(self._config, name, None), self._limits)
        return _DEFAULTS.get(name) if value is None else value

    def within(self, name: str, fits: Callable[[float], bool], expected: str) -> Any:
        """The value, which must fit unless it is None."""
        value = self(name)
        if value is not None and not fits(value):
            raise SettingError(f"{name} must be {expected}; found {shown(value)}.")
        return value


def _sampled(take: _Reader) -> dict[str, Any]:
    """The settings that apply with sampling only."""

    def is_share(value: float) -> bool:
        return 0.0 <= value <= 1.0

    between = "from 0 to 1"
    warm = f"above 0, from {_COLDEST:g} to {1 / _COLDEST:g} (do_sample=False takes the likeliest token)"
    return {
        "temperature": take.within("temperature", lambda value: _COLDEST <= value <= 1 / _COLDEST, warm),
        "top_h": take.within("top_h", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "top_k": take.within("top_k", lambda value: value >= 0, "an integer of at least 0"),
        "top_p": take.within("top_p", is_share, between),
        "min_p": take.within("min_p", is_share, between),
        "typical_p": take.within("typical_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "epsilon_cutoff": take.within("epsilon_cutoff", is_share, between),
        "eta_cutoff": take.within("eta_cutoff", is_share, between),
    }


def _seed(value: Any) -> int:
    if not is_int(value) or not 0 <= value < 2 * (LARGEST_INT + 1):
        raise SettingError(f"seed must be an integer from 0 to 2**64 - 1; found {shown(value)}.")
    return cast(int, value)


def _num_returned(count: int, do_sample: bool, num_beams: int) -> int:
    if num_beams > 1 and count > num_beams:
        raise SettingError(f"num_return_sequences must be at most num_beams={num_beams}; found {count}.")
    if num_beams == 1 and count > 1 and not do_sample:
        raise SettingError(
            f"num_return_sequences={count} needs do_sample=True or num_beams of at least {count}: greedy search has "
            "one result."
        )
    return count


def _length_penalty(penalty: float, num_beams: int, max_new_tokens: int) -> float:
    """The power of the length that beams' scores are divided by; the result must fit float32."""
    if not math.isfinite(penalty):
        raise SettingError(f"length_penalty must be a finite number; found {penalty}.")
    largest = _LARGEST_POWER / math.log2(max_new_tokens + 1)
    if num_beams > 1 and abs(penalty) > largest:
        raise SettingError(
            f"length_penalty must be at most {largest:.3g} in size for {max_new_tokens} new tokens, or the length to "
            f"this power does not fit float32; found {penalty}."
        )
    return penalty


def _bad_words(sequences: list[list[int]], eos_token_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The banned sequences, without a single end-of-text token, as in transformers."""
    return tuple(tuple(words) for words in sequences if not (len(words) == 1 and words[0] in eos_token_ids))


def _check_some_left(params: SamplingParams, vocab_size: int) -> None:
    """Refuse settings that leave nothing to choose, or no beam to continue."""
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        if sum(token < vocab_size for token in getattr(params, name)) == vocab_size:
            raise SettingError(f"{name} holds all {vocab_size} tokens; take out those that may be generated.")
    if params.num_beams > 1 and len(params.eos_token_ids) >= vocab_size:
        raise SettingError(
            f"eos_token_id holds {len(params.eos_token_ids)} tokens; beam search needs fewer than the vocabulary has, "
            f"{vocab_size}."
        )


def _check_forced(params: SamplingParams) -> None:
    """Refuse tokens that are forced and suppressed: nothing would be left to choose."""
    forced = {
        "forced_bos_token_id": () if params.forced_bos_token_id is None else (params.forced_bos_token_id,),
        "forced_eos_token_id": params.forced_eos_token_ids,
    }
    for name, tokens in forced.items():
        if tokens and set(tokens) <= set(params.suppress_tokens):
            raise SettingError(f"{name}={shown(tokens)} is in suppress_tokens as well; take it out of one of the two.")
