"""Processors and filters against transformers' own, in the order of its ``generate``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_models import tiny_model
from tolerances import assert_close
from transformers import GenerationConfig

from ruprompt_fast.requests.generation_settings import sampling_params
from ruprompt_fast.requests.sampling_params import ExtraSettings, SamplingParams
from ruprompt_fast.sampling.filters import build_filters
from ruprompt_fast.sampling.history import History
from ruprompt_fast.sampling.processors import build_processors
from ruprompt_fast.sampling.sampling_rows import SamplingRow

VOCAB = 97
ROWS = 7
EOS = [2, 5]
NEW_TOKENS = 12
MODEL = tiny_model("gpt2")

COUNTED = {
    "repetition_penalty": st.sampled_from([0.7, 1.3, 2.0]),
    "no_repeat_ngram_size": st.integers(1, 4),
    "bad_words_ids": st.just([[3], [4, 6], [1, 2, 7], [2], [9, 9, 9]]),
    "sequence_bias": st.just({(8,): 2.5, (4, 9): -3.0, (1, 2, 9): 1.5, (9,): 1.0}),
}
PLACED = {
    "min_new_tokens": st.integers(1, NEW_TOKENS),
    "forced_bos_token_id": st.just(11),
    "forced_eos_token_id": st.sampled_from([2, [2, 13]]),
    "remove_invalid_values": st.just(True),
    "exponential_decay_length_penalty": st.sampled_from([(0, 1.1), (3, 1.5)]),
    "suppress_tokens": st.just([7, 8, 40]),
    "begin_suppress_tokens": st.just([1, 50]),
}
DRAWN = {
    "temperature": st.sampled_from([0.3, 0.7, 1.9]),
    "top_h": st.sampled_from([0.2, 0.6]),
    "top_k": st.sampled_from([0, 1, 5, 50, 1000]),
    "top_p": st.sampled_from([0.0, 0.3, 0.9, 0.999]),
    "min_p": st.sampled_from([0.01, 0.3]),
    "typical_p": st.sampled_from([0.2, 0.9]),
    "epsilon_cutoff": st.sampled_from([3e-4, 0.05]),
    "eta_cutoff": st.sampled_from([3e-4, 0.05]),
}


def expected_scores(config: GenerationConfig, scores: np.ndarray, input_ids: list[int], new_ids: list[int]) -> Any:
    """What transformers' processors make of the scores; prompt rows look up columns of their own."""
    config.update(**config._get_default_generation_params(), defaults_only=True)  # as generate does
    config._eos_token_tensor = torch.tensor(EOS)
    config.max_length = len(input_ids) + NEW_TOKENS
    ids = torch.tensor([input_ids + new_ids])
    processors = MODEL._get_logits_processor(config, input_ids_seq_length=len(input_ids), encoder_input_ids=ids)
    lowest = torch.finfo(torch.float32).min
    widened = torch.nn.functional.pad(torch.from_numpy(scores)[None], (0, ROWS), value=lowest)
    return processors(ids, widened.clone())[0, :VOCAB].numpy()


def actual_scores(params: SamplingParams, scores: np.ndarray, input_ids: list[int], new_ids: list[int]) -> Any:
    scores = scores.copy()
    for process in build_processors(params):
        process(scores, History(np.array(input_ids, dtype=np.int64), new_ids))
    with np.errstate(over="ignore"):
        scores /= np.float32(params.temperature)
    ids = np.arange(len(scores))
    for keep in build_filters(params) if params.do_sample else ():
        ids = ids[keep(scores[ids])]
    kept = np.full_like(scores, -np.inf)
    kept[ids] = scores[ids]
    return kept


def assert_same_scores(actual: np.ndarray, expected: np.ndarray) -> None:
    # Where transformers' scores leave float32 upwards, ours stay at its largest number.
    actual, expected = (np.minimum(scores, np.finfo(np.float32).max) for scores in (actual, expected))
    assert np.flatnonzero(np.isfinite(actual)).tolist() == np.flatnonzero(np.isfinite(expected)).tolist()
    finite = np.isfinite(expected)
    assert_close(torch.from_numpy(actual[finite]), torch.from_numpy(expected[finite]))


def params_of(config: GenerationConfig) -> SamplingParams:
    return sampling_params(
        config,
        ExtraSettings(),
        min_new_tokens=config.min_new_tokens or 0,
        max_new_tokens=NEW_TOKENS,
        seed=0,
        vocab_size=VOCAB,
    )


def config_of(**arguments: Any) -> GenerationConfig:
    return GenerationConfig(eos_token_id=EOS, **arguments)


tokens = st.integers(0, 9)
inputs = st.lists(tokens | st.integers(VOCAB, VOCAB + ROWS - 1), min_size=1, max_size=20)


@settings(max_examples=300)
@given(
    arguments=st.fixed_dictionaries({}, optional=COUNTED | PLACED),
    input_ids=inputs,
    new_ids=st.lists(tokens, max_size=NEW_TOKENS - 1),
    seed=st.integers(0, 1000),
)
def test_processors_alone_and_together(
    arguments: dict[str, Any], input_ids: list[int], new_ids: list[int], seed: int
) -> None:
    scores = np.random.default_rng(seed).normal(0, 4, VOCAB).astype(np.float32)
    params = params_of(config_of(**arguments))
    expected = expected_scores(config_of(**arguments), scores, input_ids, new_ids)
    assert_same_scores(actual_scores(params, scores, input_ids, new_ids), expected)


@settings(max_examples=300)
@given(
    arguments=st.fixed_dictionaries({}, optional=DRAWN | PLACED),
    seed=st.integers(0, 1000),
    spread=st.sampled_from([0.1, 2.0, 8.0]),
)
def test_filters_alone_and_together(arguments: dict[str, Any], seed: int, spread: float) -> None:
    scores = np.random.default_rng(seed).normal(0, spread, VOCAB).astype(np.float32)
    params = params_of(config_of(do_sample=True, **arguments))
    expected = expected_scores(config_of(do_sample=True, **arguments), scores, [1, 3], [4])
    assert_same_scores(actual_scores(params, scores, [1, 3], [4]), expected)


@pytest.mark.parametrize("spread", [0.05, 1.0, 6.0])
@pytest.mark.parametrize("size", [255, 257, 1024, 50257])
@pytest.mark.parametrize(
    "setting",
    [
        {"top_k": 1},
        {"top_k": 50},
        {"top_k": 700},
        {"top_p": 0.2},
        {"top_p": 0.9},
        {"top_p": 0.9999},
        {"typical_p": 0.5},
        {"top_h": 0.5},
        {"min_p": 0.1},
        {"eta_cutoff": 0.002},
    ],
    ids=str,
)
def test_filters_of_large_vocabularies(setting: dict[str, Any], size: int, spread: float) -> None:
    scores = np.random.default_rng(size).normal(0, spread, size).astype(np.float32)
    scores[::5] = -np.inf
    arguments = {"top_k": 0, "do_sample": True} | setting
    params = sampling_params(
        GenerationConfig(**arguments), ExtraSettings(), min_new_tokens=0, max_new_tokens=9, seed=0, vocab_size=size
    )
    config = GenerationConfig(**arguments)
    config._eos_token_tensor = None
    processors = MODEL._get_logits_processor(config, input_ids_seq_length=1)
    expected = processors(torch.tensor([[1]]), torch.from_numpy(scores)[None].clone())[0].numpy()
    kept = build_filters(params)[0](scores)
    wanted = np.flatnonzero(np.isfinite(expected))
    # In float32, transformers' cumulative sums over tens of thousands of tokens are off by a few of them.
    slack = 0 if size < 50257 or "top_k" in setting or "min_p" in setting else max(1, len(wanted) // 500)
    assert np.all(np.diff(kept) > 0)
    assert len(np.setxor1d(kept, wanted)) <= slack


def test_top_k_keeps_every_tie_of_the_last_and_top_p_the_lowest_ids() -> None:
    scores = np.zeros(3000, dtype=np.float32)
    scores[[10, 2000]] = 1.0
    sampled = {"max_new_tokens": 1, "do_sample": True}
    assert build_filters(SamplingParams(top_k=2, **sampled))[0](scores).tolist() == [10, 2000]
    assert len(build_filters(SamplingParams(top_k=3, **sampled))[0](scores)) == 3000
    half = build_filters(SamplingParams(top_p=0.5, **sampled))[0](scores)
    assert half.tolist() == [*range(len(half) - 1), 2000]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_rows_separate_ngrams(size: int) -> None:
    row = VOCAB + 1
    params = SamplingParams(max_new_tokens=9, no_repeat_ngram_size=size)
    scores = np.zeros(VOCAB, dtype=np.float32)
    found = actual_scores(params, scores, [1, 2, row, 3, 1, row], [2])
    banned = {1: [1, 2, 3], 2: [], 3: []}[size]
    assert np.flatnonzero(np.isinf(found)).tolist() == banned


def test_presence_and_frequency_count_new_tokens_only() -> None:
    params = SamplingParams(max_new_tokens=9, presence_penalty=0.5, frequency_penalty=0.25)
    found = actual_scores(params, np.zeros(VOCAB, dtype=np.float32), [1, 1, VOCAB], [2, 3, 3])
    assert {index: found[index] for index in np.flatnonzero(found)} == {2: -0.75, 3: -1.0}


def test_logit_bias_adds_to_sequence_bias_and_to_what_is_there() -> None:
    params = SamplingParams(max_new_tokens=9, logit_bias=((4, 2.0), (5, float("-inf"))), sequence_bias=(((4,), 1.0),))
    found = actual_scores(params, np.ones(VOCAB, dtype=np.float32), [1], [])
    assert found[4] == 4.0
    assert np.flatnonzero(np.isinf(found)).tolist() == [5]


def test_the_end_is_not_raised_beyond_float32() -> None:
    params = SamplingParams(max_new_tokens=9000, eos_token_ids=(2,), exponential_decay_length_penalty=(0, 3.0))
    found = actual_scores(params, np.ones(VOCAB, dtype=np.float32), [1], [1] * 5000)
    assert np.isfinite(found).all()
    assert found.argmax() == 2


def test_sequences_of_the_same_settings_share_their_processors() -> None:
    """A bias for every token of a vocabulary takes 5 ms to read: too long for each of 64 sequences."""
    params = SamplingParams(5, logit_bias=tuple((token, 0.5) for token in range(VOCAB)))
    first, second = SamplingRow(params, [1], []), SamplingRow(params, [2], [3], stream=1)
    assert first.processors is second.processors
    assert SamplingRow(replace(params, presence_penalty=0.5), [1], []).processors != first.processors
