"""Beam search against transformers' generate on tiny random models."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, tiny_model
from tolerances import LOGPROB_ERROR
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, StoppingCriteria

from ruprompt_fast.errors import NonFiniteLogitsError, SettingError
from ruprompt_fast.requests.generation_settings import sampling_params
from ruprompt_fast.requests.sampling_params import ExtraSettings, SamplingParams
from ruprompt_fast.sampling.beam_search import BeamSearch

INPUT = [5, 9, 13, 9, 21]


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    model = tiny_model(request.param)
    with torch.no_grad():  # a random head is nearly flat: make its choices clear, so that no two beams tie
        model.get_output_embeddings().weight.mul_(12.0)
    return model


def search(model: PreTrainedModel, params: SamplingParams, **arguments: Any) -> BeamSearch:
    """Run the beams on full sequences, recomputed at every step."""
    beams = BeamSearch(params, INPUT, VOCAB, **arguments)
    sequences = [list(INPUT)]
    with torch.inference_mode():
        while not beams.finished:
            step = beams.advance(model(torch.tensor(sequences)).logits[:, -1])
            sequences = [
                [*sequences[parent], token] for parent, token in zip(step.parents, step.token_ids, strict=True)
            ]
            assert [sequence[len(INPUT) :] for sequence in sequences] == beams.new_ids
    return beams


def params_of(config: GenerationConfig) -> SamplingParams:
    return sampling_params(
        config,
        ExtraSettings(),
        min_new_tokens=config.min_new_tokens or 0,
        max_new_tokens=config.max_new_tokens,
        seed=0,
        vocab_size=VOCAB,
    )


def config_of(**arguments: Any) -> GenerationConfig:
    settings = {"num_beams": 4, "max_new_tokens": 12, "eos_token_id": 2, "pad_token_id": 0, "output_scores": True}
    return GenerationConfig(return_dict_in_generate=True, **(settings | arguments))


def assert_same_beams(model: PreTrainedModel, config: GenerationConfig, **arguments: Any) -> BeamSearch:
    expected = model.generate(torch.tensor([INPUT]), attention_mask=torch.ones(1, len(INPUT)), generation_config=config)
    beams = search(model, params_of(config), **arguments)
    results = beams.results()
    assert len(results) == (config.num_return_sequences or 1)
    scores = torch.stack(expected.scores).log_softmax(-1)
    for index, result in enumerate(results):
        origins = expected.beam_indices[index]
        length = int((origins >= 0).sum())
        tokens = expected.sequences[index, len(INPUT) : len(INPUT) + length]
        assert result.token_ids == tokens.tolist()
        assert result.score == pytest.approx(float(expected.sequences_scores[index]), abs=LOGPROB_ERROR)
        wanted = scores[torch.arange(length), origins[:length], tokens].tolist()
        assert result.logprobs == pytest.approx(wanted, abs=LOGPROB_ERROR)
    return beams


LIKELY_END = {"sequence_bias": {(2,): 4.0}}


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.5])
@pytest.mark.parametrize("ends", [False, True])
def test_length_penalty_and_early_stopping(
    model: PreTrainedModel, early_stopping: bool | str, length_penalty: float, ends: bool
) -> None:
    config = config_of(
        early_stopping=early_stopping,
        length_penalty=length_penalty,
        num_return_sequences=4,
        **(LIKELY_END if ends else {}),
    )
    beams = assert_same_beams(model, config)
    assert {result.finish_reason for result in beams.results()} <= {"stop", "length"}


@pytest.mark.parametrize(
    "setting",
    [
        {"num_beams": 10, "num_return_sequences": 10},
        {"num_beams": 10, "num_return_sequences": 10, **LIKELY_END},
        {"num_beams": 2, "num_return_sequences": 1, "max_new_tokens": 1},
        {"num_return_sequences": 3, "max_new_tokens": 30, **LIKELY_END},
        {"eos_token_id": [2, 7, 11], "sequence_bias": {(7,): 3.0, (11,): 3.0}, "num_return_sequences": 4},
        {"eos_token_id": None},
        {"repetition_penalty": 1.7, "num_return_sequences": 4},
        {"no_repeat_ngram_size": 2, "num_return_sequences": 4},
        {"min_new_tokens": 6, "num_return_sequences": 4, **LIKELY_END},
        {"bad_words_ids": [[3], [5, 9]], "suppress_tokens": [30, 31], "begin_suppress_tokens": [12]},
        {"forced_eos_token_id": 2, "num_return_sequences": 4},
        {"renormalize_logits": True, "repetition_penalty": 1.3, "num_return_sequences": 4},
        {"exponential_decay_length_penalty": (2, 1.2), "num_return_sequences": 4},
        {"remove_invalid_values": True},
        {"num_beams": 25, "num_return_sequences": 25, "max_new_tokens": 4},
        {"num_beams": 40, "num_return_sequences": 40, "max_new_tokens": 3},
    ],
    ids=str,
)
def test_settings(model: PreTrainedModel, setting: dict[str, Any]) -> None:
    assert_same_beams(model, config_of(**setting))


@pytest.mark.parametrize("seed", range(6))
def test_other_models(seed: int) -> None:
    model = tiny_model("gpt2", seed)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8.0)
    assert_same_beams(model, config_of(num_beams=5, num_return_sequences=5, sequence_bias={(2,): 2.0}))


class _EndsWith(StoppingCriteria):
    def __init__(self, tokens: set[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        return torch.tensor([row[-1].item() in self.tokens for row in input_ids])


def test_stop_strings_end_a_beam(model: PreTrainedModel) -> None:
    stops = set(range(20, 40))
    config = config_of(num_return_sequences=4)
    expected = model.generate(
        torch.tensor([INPUT]),
        attention_mask=torch.ones(1, len(INPUT)),
        generation_config=config,
        stopping_criteria=[_EndsWith(stops)],
    )
    config.stop_strings = ["x"]
    beams = search(model, params_of(config), stops=lambda new_ids: new_ids[-1] in stops)
    for index, result in enumerate(beams.results()):
        length = int((expected.beam_indices[index] >= 0).sum())
        assert result.token_ids == expected.sequences[index, len(INPUT) : len(INPUT) + length].tolist()
        assert result.finish_reason == ("stop" if result.token_ids[-1] in stops else "length")
    assert "stop" in {result.finish_reason for result in beams.results()}


def test_time_runs_out(model: PreTrainedModel) -> None:
    beams = BeamSearch(params_of(config_of(num_return_sequences=4)), INPUT, VOCAB)
    logits = torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))
    beams.advance(logits[:1])
    beams.advance(logits, out_of_time=True)
    assert beams.finished
    assert [len(result.token_ids) for result in beams.results()] == [2] * 4
    assert {result.finish_reason for result in beams.results()} == {"time"}


def test_no_logprobs_unless_asked() -> None:
    beams = BeamSearch(SamplingParams(max_new_tokens=1, num_beams=3), INPUT, VOCAB)
    step = beams.advance(torch.randn(1, VOCAB + 5, generator=torch.Generator().manual_seed(0)))
    assert step.parents == [0, 0, 0]
    assert [result.logprobs for result in beams.results()] == [None]


def test_banned_ids_and_columns_after_the_vocabulary_are_never_chosen() -> None:
    logits = torch.zeros(1, VOCAB + 4)
    logits[0, VOCAB:] = 50.0
    logits[0, 10:] += 5.0
    banned = list(range(13, VOCAB))
    beams = BeamSearch(SamplingParams(max_new_tokens=1, num_beams=3, num_return_sequences=3), INPUT, VOCAB, banned)
    beams.advance(logits)
    assert [result.token_ids for result in beams.results()] == [[10], [11], [12]]


def test_fewer_tokens_left_than_beams() -> None:
    params = SamplingParams(max_new_tokens=3, num_beams=4, suppress_tokens=tuple(range(1, VOCAB)))
    beams = BeamSearch(params, INPUT, VOCAB)
    logits = torch.zeros(4, VOCAB)
    beams.advance(logits[:1])
    while not beams.finished:
        beams.advance(logits)
    assert beams.results()[0].token_ids == [0, 0, 0]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_broken_logits(value: float) -> None:
    logits = torch.full((1, VOCAB), value)
    with pytest.raises(NonFiniteLogitsError, match="remove_invalid_values"):
        BeamSearch(SamplingParams(max_new_tokens=3, num_beams=2), INPUT, VOCAB).advance(logits)
    repaired = SamplingParams(max_new_tokens=3, num_beams=2, remove_invalid_values=True)
    BeamSearch(repaired, INPUT, VOCAB).advance(logits)


def test_what_beams_cannot_do() -> None:
    with pytest.raises(SettingError, match="do_sample=False"):
        BeamSearch(SamplingParams(max_new_tokens=3, num_beams=2, do_sample=True), INPUT, VOCAB)
    with pytest.raises(SettingError, match="stop_strings"):
        BeamSearch(SamplingParams(max_new_tokens=3, num_beams=2, stop_strings=("a",)), INPUT, VOCAB)


@pytest.mark.parametrize("penalty", [-25.0, -3.0, 25.0])
def test_any_length_penalty_leaves_a_result(model: PreTrainedModel, penalty: float) -> None:
    """transformers takes a score that a negative power makes lower than the one that means none as none."""
    params = params_of(config_of(num_beams=4, max_new_tokens=10, length_penalty=penalty))
    results = search(model, params).results()
    assert results[0].token_ids
    assert math.isfinite(results[0].score)
