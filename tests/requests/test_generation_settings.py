"""Settings: transformers' defaults, what is refused, and what is left to transformers' own generate."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from ruprompt_fast.errors import SettingError
from ruprompt_fast.requests.coverage import IMPLEMENTED, WITHOUT_EFFECT, fallback_only_settings
from ruprompt_fast.requests.generation_settings import sampling_params
from ruprompt_fast.requests.sampling_params import ExtraSettings, SamplingParams
from ruprompt_fast.sampling.sampling_rows import SamplingRow


def resolve(extras: ExtraSettings | None = None, **settings: Any) -> SamplingParams:
    config = GenerationConfig()
    for name, value in settings.items():  # past transformers' own checks
        setattr(config, name, value)
    return sampling_params(
        config, extras or ExtraSettings(), min_new_tokens=0, max_new_tokens=5, seed=77, vocab_size=100
    )


def test_defaults_are_those_of_generate() -> None:
    defaults = GenerationConfig()._get_default_generation_params()
    assert resolve() == resolve(**defaults)
    assert resolve(do_sample=True) == resolve(**(defaults | {"do_sample": True}))
    assert resolve(do_sample=True).top_k == defaults["top_k"]
    assert fallback_only_settings(GenerationConfig(**defaults)) == []


def test_greedy_without_settings_is_plain() -> None:
    def is_plain_greedy(**settings: Any) -> bool:
        return SamplingRow(resolve(**settings), [1], []).is_plain_greedy

    assert is_plain_greedy()
    assert is_plain_greedy(temperature=0.5, top_p=0.3)  # counts with sampling only
    for setting in ({"do_sample": True}, {"output_scores": True}, {"repetition_penalty": 1.1}):
        assert not is_plain_greedy(**setting)


def test_values_reach_their_places() -> None:
    params = resolve(
        ExtraSettings(seed=3, presence_penalty=1, frequency_penalty=-0.5, logit_bias={4: 2}),
        do_sample=True,
        temperature=2,
        top_k=0,
        eos_token_id=[2, 3],
        stop_strings=["a", "", "b"],
        output_scores=True,
        max_time=1.5,
        num_return_sequences=4,
        sequence_bias=[[[1, 2], 1.0], [[3], -1.0]],
        bad_words_ids=[[2], [5], [6, 7]],
        forced_eos_token_id=2,
        exponential_decay_length_penalty=(3, 1.1),
        early_stopping="never",
    )
    assert (params.seed, params.presence_penalty, params.frequency_penalty) == (3, 1.0, -0.5)
    assert params.logit_bias == ((4, 2.0),)
    assert (params.temperature, params.top_k, params.logprobs, params.max_time) == (2.0, 0, True, 1.5)
    assert (params.eos_token_ids, params.stop_strings) == ((2, 3), ("a", "b"))
    assert params.sequence_bias == (((1, 2), 1.0), ((3,), -1.0))
    assert params.bad_words_ids == ((5,), (6, 7))  # an end of text alone cannot be banned so
    assert (params.forced_eos_token_ids, params.exponential_decay_length_penalty) == ((2,), (3, 1.1))
    assert (params.early_stopping, params.num_return_sequences) == ("never", 4)
    assert resolve().seed == 77
    hash(params)


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.0},
        {"do_sample": True, "temperature": float("nan")},
        {"do_sample": True, "temperature": "hot"},
        {"do_sample": True, "top_k": -1},
        {"do_sample": True, "top_k": 1.5},
        {"do_sample": True, "top_p": 1.1},
        {"do_sample": True, "min_p": -0.1},
        {"do_sample": True, "typical_p": 0.0},
        {"do_sample": True, "top_h": 0.0},
        {"do_sample": True, "epsilon_cutoff": 2.0},
        {"do_sample": True, "eta_cutoff": float("inf")},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": True},
        {"no_repeat_ngram_size": -2},
        {"num_beams": 0},
        {"num_return_sequences": 2},
        {"num_beams": 2, "num_return_sequences": 3},
        {"early_stopping": "soon"},
        {"length_penalty": float("nan")},
        {"max_time": 0},
        {"eos_token_id": [-1]},
        {"eos_token_id": "end"},
        {"stop_strings": [3]},
        {"sequence_bias": {(): 1.0}},
        {"sequence_bias": {(1,): "big"}},
        {"sequence_bias": {(1,): float("nan")}},
        {"sequence_bias": [1, 2]},
        {"sequence_bias": {(100,): 1.0}},
        {"bad_words_ids": []},
        {"bad_words_ids": [3]},
        {"bad_words_ids": [[]]},
        {"bad_words_ids": [[100]]},
        {"suppress_tokens": [-1]},
        {"suppress_tokens": 3.5},
        {"forced_bos_token_id": 100},
        {"forced_bos_token_id": 4, "suppress_tokens": [4]},
        {"forced_eos_token_id": 4, "suppress_tokens": [4, 5]},
        {"exponential_decay_length_penalty": 1.0, "eos_token_id": 2},
        {"exponential_decay_length_penalty": (1, -1.0), "eos_token_id": 2},
        {"exponential_decay_length_penalty": (1, 1.1)},
        {"extras": ExtraSettings(seed=-1)},
        {"extras": ExtraSettings(seed=2**64)},
        {"extras": ExtraSettings(seed=1.0)},  # type: ignore[arg-type]
        {"extras": ExtraSettings(presence_penalty=float("inf"))},
        {"extras": ExtraSettings(frequency_penalty="x")},  # type: ignore[arg-type]
        {"extras": ExtraSettings(logit_bias={100: 1.0})},
        {"extras": ExtraSettings(logit_bias={-1: 1.0})},
        {"extras": ExtraSettings(logit_bias={1: float("inf")})},
        {"extras": ExtraSettings(logit_bias=[1])},  # type: ignore[arg-type]
    ],
    ids=str,
)
def test_refused_values_are_named(settings: dict[str, Any]) -> None:
    name = next(reversed(settings)) if "extras" not in settings else "seed|presence|frequency|logit_bias"
    name = {"eos_token_id": "exponential_decay|eos_token_id", "suppress_tokens": "forced|suppress"}.get(name, name)
    with pytest.raises(SettingError, match=name):
        resolve(**settings)


NEUTRAL = {
    "guidance_scale": 1.0,
    "num_beam_groups": 1,
    "diversity_penalty": 0.0,
    "encoder_no_repeat_ngram_size": 0,
    "encoder_repetition_penalty": 1.0,
    "cache_implementation": "static",
    "token_healing": False,
    "output_logits": False,
}


def config_with(name: str, value: Any) -> GenerationConfig:
    config = GenerationConfig()
    setattr(config, name, value)
    return config


def test_every_field_of_the_config_is_implemented_without_effect_or_left_to_transformers() -> None:
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")}
    assert fields >= IMPLEMENTED
    assert not IMPLEMENTED & set(WITHOUT_EFFECT)
    for name in fields:
        unusual = config_with(name, object())
        ignored = name in IMPLEMENTED or name in WITHOUT_EFFECT
        assert fallback_only_settings(unusual) == ([] if ignored else [name])


def test_implemented_fields_change_the_params() -> None:
    values: dict[str, Any] = {
        "do_sample": True, "temperature": 0.5, "top_h": 0.5, "top_k": 7, "top_p": 0.5, "min_p": 0.5, "typical_p": 0.5,
        "epsilon_cutoff": 0.5, "eta_cutoff": 0.5, "num_beams": 3, "length_penalty": 2.0, "early_stopping": True,
        "num_return_sequences": 2, "renormalize_logits": True, "repetition_penalty": 2.0, "no_repeat_ngram_size": 2,
        "bad_words_ids": [[4]], "sequence_bias": {(1,): 1.0}, "suppress_tokens": [1], "begin_suppress_tokens": [1],
        "forced_bos_token_id": 1, "forced_eos_token_id": 1, "remove_invalid_values": True, "eos_token_id": 2,
        "exponential_decay_length_penalty": (1, 1.5), "stop_strings": ["a"], "max_time": 1.0, "output_scores": True,
    }  # fmt: skip
    lengths = {"max_new_tokens", "min_new_tokens", "max_length", "min_length"}
    assert values.keys() == IMPLEMENTED - lengths
    base = {"do_sample": True, "eos_token_id": 3}
    for name, value in values.items():
        before = {} if name == "do_sample" else base
        assert resolve(**(before | {name: value})) != resolve(**before), name


@pytest.mark.parametrize(("name", "value"), NEUTRAL.items())
def test_neutral_values_ask_for_nothing(name: str, value: Any) -> None:
    assert fallback_only_settings(config_with(name, value)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_lookup_num_tokens", 3),
        ("guidance_scale", 1.5),
        ("watermarking_config", {"bias": 2.0}),
        ("cache_implementation", "quantized"),
        ("encoder_repetition_penalty", 1.2),
        ("is_assistant", True),
        ("a_setting_of_the_future", False),
    ],
)
def test_what_is_left_to_transformers(name: str, value: Any) -> None:
    assert fallback_only_settings(config_with(name, value)) == [name]


def test_sampled_beams_are_left_to_transformers() -> None:
    assert fallback_only_settings(GenerationConfig(do_sample=True, num_beams=2)) == ["do_sample", "num_beams"]
    assert fallback_only_settings(GenerationConfig(do_sample=True, num_beams=1)) == []
