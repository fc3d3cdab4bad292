"""From transformers' ``GenerationConfig`` to :class:`SamplingParams`: defaults, checks, and what is left to others."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from ruprompt_fast.engine.sampling.params import ExtraSettings, SamplingParams
from ruprompt_fast.errors import SettingError

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
        config: the merged generation settings; what :func:`padded_only_settings` lists is not read.
        extras: settings that ``config`` has no place for.
        min_new_tokens: resolved from ``min_new_tokens`` and ``min_length``.
        max_new_tokens: resolved from ``max_new_tokens`` and ``max_length``.
        seed: the noise's seed where ``extras`` has none.
        vocab_size: where given, token ids of the settings must lie below it.

    Raises:
        SettingError: a setting has a value that cannot work.
    """
    take = _Reader(config)
    do_sample, num_beams = bool(take("do_sample")), take.integer("num_beams", 1)
    sampled: dict[str, Any] = _sampled(take) if do_sample else {}
    params = SamplingParams(
        max_new_tokens=_integer("max_new_tokens", max_new_tokens, 1),
        min_new_tokens=_integer("min_new_tokens", min_new_tokens, 0),
        eos_token_ids=take.tokens("eos_token_id"),
        stop_strings=_strings(take("stop_strings")),
        logprobs=bool(take("output_scores")),
        max_time=take.optional("max_time", lambda value: value > 0, "a number of seconds above 0"),
        num_return_sequences=_num_returned(take.integer("num_return_sequences", 1), do_sample, num_beams),
        do_sample=do_sample,
        seed=_seed(seed if extras.seed is None else extras.seed),
        num_beams=num_beams,
        length_penalty=take.number("length_penalty", math.isfinite, "a finite number"),
        early_stopping=_early_stopping(take("early_stopping")),
        renormalize_logits=bool(take("renormalize_logits")),
        sequence_bias=_sequence_bias(take("sequence_bias")),
        logit_bias=_logit_bias(extras.logit_bias),
        repetition_penalty=take.number("repetition_penalty", lambda value: value > 0, "above 0"),
        presence_penalty=_number("presence_penalty", extras.presence_penalty, math.isfinite, "a finite number"),
        frequency_penalty=_number("frequency_penalty", extras.frequency_penalty, math.isfinite, "a finite number"),
        no_repeat_ngram_size=take.integer("no_repeat_ngram_size", 0),
        bad_words_ids=_bad_words(take("bad_words_ids"), take.tokens("eos_token_id")),
        forced_bos_token_id=next(iter(take.tokens("forced_bos_token_id")), None),
        forced_eos_token_ids=take.tokens("forced_eos_token_id"),
        remove_invalid_values=bool(take("remove_invalid_values")),
        exponential_decay_length_penalty=_decay(
            take("exponential_decay_length_penalty"), bool(take.tokens("eos_token_id"))
        ),
        suppress_tokens=take.tokens("suppress_tokens"),
        begin_suppress_tokens=take.tokens("begin_suppress_tokens"),
        **sampled,
    )
    _check_forced(params)
    if vocab_size is not None:
        _check_vocabulary(params, vocab_size)
    return params


class _Reader:
    """Reads settings by name, with their defaults."""

    def __init__(self, config: GenerationConfig) -> None:
        self._config = config

    def __call__(self, name: str) -> Any:
        value = getattr(self._config, name, None)
        return _DEFAULTS.get(name) if value is None else value

    def integer(self, name: str, least: int) -> int:
        return _integer(name, self(name), least)

    def number(self, name: str, fits: Callable[[float], bool], expected: str) -> float:
        return _number(name, self(name), fits, expected)

    def optional(self, name: str, fits: Callable[[float], bool], expected: str) -> float | None:
        return None if self(name) is None else _number(name, self(name), fits, expected)

    def tokens(self, name: str) -> tuple[int, ...]:
        value = self(name)
        if value is None:
            return ()
        return _token_ids(name, value if isinstance(value, Iterable) else [value])


def _sampled(take: _Reader) -> dict[str, Any]:
    """The settings that count with sampling only."""

    def is_share(value: float) -> bool:
        return 0.0 <= value <= 1.0

    between = "from 0 to 1"
    return {
        "temperature": take.number(
            "temperature", lambda value: 0 < value < math.inf, "above 0 (do_sample=False takes the likeliest token)"
        ),
        "top_h": take.optional("top_h", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "top_k": take.integer("top_k", 0),
        "top_p": take.number("top_p", is_share, between),
        "min_p": take.number("min_p", is_share, between),
        "typical_p": take.number("typical_p", lambda value: 0 < value <= 1, "above 0 and at most 1"),
        "epsilon_cutoff": take.number("epsilon_cutoff", is_share, between),
        "eta_cutoff": take.number("eta_cutoff", is_share, between),
    }


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _integer(name: str, value: Any, least: int) -> int:
    if not _is_int(value) or value < least:
        raise SettingError(f"{name} must be an integer of at least {least}; found {value!r}.")
    return cast(int, value)


def _number(name: str, value: Any, fits: Callable[[float], bool], expected: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not fits(value):
        raise SettingError(f"{name} must be {expected}; found {value!r}.")
    return float(value)


def _token_ids(name: str, values: Any) -> tuple[int, ...]:
    ids = tuple(values.tolist() if hasattr(values, "tolist") else values)
    if not all(_is_int(value) and value >= 0 for value in ids):
        raise SettingError(f"{name} must hold token ids, integers of at least 0; found {values!r}.")
    return ids


def _seed(value: Any) -> int:
    if not _is_int(value) or not 0 <= value < 2**64:
        raise SettingError(f"seed must be an integer from 0 to 2**64 - 1; found {value!r}.")
    return cast(int, value)


def _strings(value: Any) -> tuple[str, ...]:
    several = value is None or (isinstance(value, Iterable) and not isinstance(value, str))
    strings = tuple(value or ()) if several else (value,)
    if not all(isinstance(string, str) for string in strings):
        raise SettingError(f"stop_strings must be a string or a list of strings; found {value!r}.")
    return tuple(string for string in strings if string)


def _num_returned(count: int, do_sample: bool, num_beams: int) -> int:
    if num_beams > 1 and count > num_beams:
        raise SettingError(f"num_return_sequences must be at most num_beams={num_beams}; found {count}.")
    if num_beams == 1 and count > 1 and not do_sample:
        raise SettingError(
            f"num_return_sequences={count} needs do_sample=True or num_beams of at least {count}: greedy search has "
            "one result."
        )
    return count


def _early_stopping(value: Any) -> Any:
    if value is True or value is False or value == "never":
        return value
    raise SettingError(f"early_stopping must be True, False or 'never'; found {value!r}.")


def _sequence_bias(value: Any) -> tuple[tuple[tuple[int, ...], float], ...]:
    if value is None:
        return ()
    pairs = list(value.items()) if isinstance(value, Mapping) else value
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise SettingError(
            f"sequence_bias must map tuples of token ids to numbers, or be a list of [ids, number]; found {value!r}."
        )
    name = "sequence_bias"
    biases = {_sequence(name, sequence): _number(name, bias, _is_bias, "numbers") for sequence, bias in pairs}
    return tuple(biases.items())


def _logit_bias(value: Mapping[int, float] | None) -> tuple[tuple[int, float], ...]:
    if value is not None and not isinstance(value, Mapping):
        raise SettingError(f"logit_bias must map token ids to numbers; found {value!r}.")
    return tuple(
        (_integer("a token id of logit_bias", token, 0), _number("a value of logit_bias", bias, _is_bias, "a number"))
        for token, bias in (value or {}).items()
    )


def _is_bias(value: float) -> bool:
    return not math.isnan(value) and value != math.inf


def _sequence(name: str, values: Any) -> tuple[int, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise SettingError(f"{name} must hold lists of token ids; found {values!r}.")
    sequence = _token_ids(name, values)
    if not sequence:
        raise SettingError(f"{name} must not hold an empty sequence of token ids.")
    return sequence


def _bad_words(value: Any, eos_token_ids: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """The banned sequences; an end of text alone is none of them, as in transformers."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)) or not value:
        raise SettingError(f"bad_words_ids must be a list of lists of token ids, with one at least; found {value!r}.")
    sequences = [_sequence("bad_words_ids", words) for words in value]
    return tuple(words for words in sequences if not (len(words) == 1 and words[0] in eos_token_ids))


def _decay(value: Any, has_end: bool) -> tuple[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        raise SettingError(f"exponential_decay_length_penalty must be (start, factor); found {value!r}.")
    if not has_end:
        raise SettingError("exponential_decay_length_penalty needs an eos_token_id to raise; there is none.")
    name = "exponential_decay_length_penalty's "
    return _integer(name + "start", value[0], 0), _number(
        name + "factor", value[1], lambda factor: 0 < factor < math.inf, "above 0"
    )


def _check_forced(params: SamplingParams) -> None:
    """Refuse tokens that are forced and suppressed: nothing would be left to choose."""
    forced = {
        "forced_bos_token_id": () if params.forced_bos_token_id is None else (params.forced_bos_token_id,),
        "forced_eos_token_id": params.forced_eos_token_ids,
    }
    for name, tokens in forced.items():
        if tokens and set(tokens) <= set(params.suppress_tokens):
            raise SettingError(f"{name}={tokens} is in suppress_tokens as well; take it out of one of the two.")


def _check_vocabulary(params: SamplingParams, vocab_size: int) -> None:
    """Refuse token ids that have no score."""
    named = {
        "sequence_bias": [token for sequence, _ in params.sequence_bias for token in sequence],
        "logit_bias": [token for token, _ in params.logit_bias],
        "bad_words_ids": [token for sequence in params.bad_words_ids for token in sequence],
        "forced_bos_token_id": [] if params.forced_bos_token_id is None else [params.forced_bos_token_id],
        "forced_eos_token_id": list(params.forced_eos_token_ids),
    }
    for name, tokens in named.items():
        outside = sorted({token for token in tokens if token >= vocab_size})
        if outside:
            raise SettingError(f"{name} must hold token ids below {vocab_size}; found {outside}.")
