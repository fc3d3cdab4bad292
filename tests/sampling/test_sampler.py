"""The sampler: greedy, sampled and broken rows, their independence of each other, and log-probabilities."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import LOGPROB_ERROR

from ruprompt_fast.errors import NonFiniteLogitsError
from ruprompt_fast.requests.sampling_params import SamplingParams, finish_reason
from ruprompt_fast.sampling.noise import gumbel, noise_key
from ruprompt_fast.sampling.sampler import Sampler
from ruprompt_fast.sampling.sampling_rows import SampledToken, SamplingRow

VOCAB = 1003
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy with logprobs": {"logprobs": True},
    "penalties": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.1},
    "n-grams": {"no_repeat_ngram_size": 2, "bad_words_ids": ((7,), (8, 9))},
    "end later": {"min_new_tokens": 9, "eos_token_ids": (2,)},
    "sampled": {"do_sample": True, "logprobs": True},
    "sampled hot": {"do_sample": True, "temperature": 1.7, "logprobs": True},
    "top-k": {"do_sample": True, "top_k": 50, "temperature": 0.7, "logprobs": True},
    "top-k 3": {"do_sample": True, "top_k": 3},
    "top-p": {"do_sample": True, "top_p": 0.9, "logprobs": True},
    "top-k and top-p": {"do_sample": True, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.2},
    "min-p": {"do_sample": True, "min_p": 0.05},
    "typical": {"do_sample": True, "typical_p": 0.8},
    "eta": {"do_sample": True, "eta_cutoff": 0.01},
    "epsilon": {"do_sample": True, "epsilon_cutoff": 0.01},
    "top-h": {"do_sample": True, "top_h": 0.7},
}


def params(**settings: Any) -> SamplingParams:
    return SamplingParams(max_new_tokens=20, **settings)


def random_logits(count: int, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread


def sample(logits: torch.Tensor, rows: list[SamplingRow], **arguments: Any) -> list[SampledToken]:
    before = logits.clone()
    tokens = Sampler(VOCAB, **arguments).sample(logits, rows)
    np.testing.assert_array_equal(logits.float(), before.float())
    assert all(isinstance(token, SampledToken) for token in tokens), tokens
    return tokens


def refusal(logits: torch.Tensor, row: SamplingRow) -> str:
    """Why nothing can be chosen from one row of logits."""
    (error,) = Sampler(VOCAB).sample(logits, [row])
    assert isinstance(error, NonFiniteLogitsError)
    return str(error)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("count", [0, 1, 3])
def test_greedy_takes_the_first_largest(count: int, dtype: torch.dtype) -> None:
    logits = random_logits(count).to(dtype)
    logits[:, 700] = logits[:, 300] = 20.0
    row = SamplingRow(params(), [1], [])
    assert [token.token_ids for token in sample(logits, [row] * count)] == [[300]] * count


def test_banned_ids_and_columns_after_the_vocabulary_are_never_chosen() -> None:
    logits = torch.nn.functional.pad(random_logits(2), (0, 9), value=99.0)
    logits[:, 5] = logits[:, VOCAB - 1] = 50.0
    logits[:, 6] = 40.0
    rows = [SamplingRow(params(), [1], []), SamplingRow(params(do_sample=True, top_k=1), [1], [])]
    assert [token.token_ids for token in sample(logits, rows, banned_ids=[5, VOCAB - 1])] == [[6], [6]]


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_row_does_not_depend_on_its_neighbours(kind: str) -> None:
    rows = [
        SamplingRow(params(**settings, seed=index), [3, VOCAB + 1, 4], [5, 6, 5], stream=index % 3)
        for index, settings in enumerate(KINDS.values())
    ]
    logits = random_logits(len(rows))
    mine = list(KINDS).index(kind)
    alone = sample(logits[mine : mine + 1].clone(), [rows[mine]])[0]
    assert sample(logits, rows)[mine] == alone
    order = [*range(mine + 1, len(rows)), mine, *range(mine)]
    assert sample(logits[order], [rows[index] for index in order])[order.index(mine)] == alone
    wider = torch.nn.functional.pad(logits, (0, 5))  # other strides, so other alignment
    assert sample(wider, rows)[mine] == alone


@settings(max_examples=50)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=5),
    seed=st.integers(0, 2**64 - 1),
    num_new=st.integers(0, 12),
)
def test_mixed_batches_are_their_rows(kinds: list[str], seed: int, num_new: int) -> None:
    rows = [
        SamplingRow(params(**KINDS[kind], seed=seed), [3, 4], [5] * num_new, stream)
        for stream, kind in enumerate(kinds)
    ]
    logits = random_logits(len(rows), seed % 1000, spread=1.0 + seed % 4)
    assert sample(logits, rows) == [sample(logits[i : i + 1], [row])[0] for i, row in enumerate(rows)]


def test_sampling_is_the_largest_sum_of_scores_and_noise() -> None:
    logits = random_logits(1)
    for step in range(20):
        for stream in range(3):
            row = SamplingRow(params(do_sample=True, seed=9), [1], [4] * step, stream)
            noise = gumbel(noise_key(9, stream, step), VOCAB)
            assert sample(logits, [row])[0].token_ids == [int(np.argmax(logits[0].numpy() + noise))]


def test_top_k_changes_no_draw_that_stays_in() -> None:
    logits = random_logits(1, spread=2.0)
    best = set(logits[0].topk(100).indices.tolist())
    agreed = 0
    for step in range(100):
        new_ids = [4] * step
        free = sample(logits, [SamplingRow(params(do_sample=True), [1], new_ids)])[0].token_ids[0]
        kept = sample(logits, [SamplingRow(params(do_sample=True, top_k=100), [1], new_ids)])[0].token_ids[0]
        assert kept in best
        if free in best:
            assert kept == free
            agreed += 1
    assert agreed > 10


@pytest.mark.parametrize("settings", [{"do_sample": True}, {"do_sample": True, "top_k": 20}, {}], ids=str)
def test_several_samples_are_the_streams(settings: dict[str, Any]) -> None:
    logits = random_logits(1)
    every = sample(logits, [SamplingRow(params(logprobs=True, **settings), [1], [], 2, num_samples=5)])[0]
    single = [sample(logits, [SamplingRow(params(logprobs=True, **settings), [1], [], 2 + k)])[0] for k in range(5)]
    assert every.token_ids == [token.token_ids[0] for token in single]
    assert every.logprobs == [token.logprobs[0] for token in single if token.logprobs]


@pytest.mark.parametrize("settings", [{}, {"do_sample": True, "top_k": 30, "temperature": 0.8}], ids=str)
def test_logprobs_are_of_the_processed_scores(settings: dict[str, Any]) -> None:
    logits = random_logits(1)
    row = SamplingRow(params(logprobs=True, suppress_tokens=(3,), **settings), [1], [])
    token = sample(logits, [row])[0]
    scores = logits[0].clone()
    scores[3] = -torch.inf
    if settings:
        scores /= 0.8
        scores[scores < scores.topk(30).values[-1]] = -torch.inf
    assert token.logprobs == pytest.approx([float(scores.log_softmax(-1)[token.token_ids[0]])], abs=LOGPROB_ERROR)


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_row_is_refused_by_itself(value: float, settings: dict[str, Any]) -> None:
    logits = random_logits(4)
    logits[1] = value
    rows = [SamplingRow(params(**settings), [1], [4])] * 3
    first, broken, third, unwanted = Sampler(VOCAB).sample(logits, [*rows, None])
    assert [first, third] == sample(logits[[0, 2]], rows[:2])
    assert isinstance(broken, NonFiniteLogitsError)
    assert "remove_invalid_values" in str(broken)
    assert unwanted is None
    repaired = [replace(row, params=params(remove_invalid_values=True, **settings)) for row in rows]
    assert len(sample(logits, repaired)) == 3


def test_one_broken_logit_breaks_its_row_unless_it_is_repaired() -> None:
    logits = random_logits(1)
    logits[0, 17] = torch.nan
    assert "found NaN" in refusal(logits, SamplingRow(params(), [1], []))
    row = SamplingRow(params(remove_invalid_values=True), [1], [])
    assert sample(logits, [row])[0].token_ids == [int(logits.nan_to_num(0.0).argmax())]


def test_nothing_left_to_choose() -> None:
    row = SamplingRow(params(suppress_tokens=tuple(range(VOCAB))), [1], [])
    assert "no token that is not ruled out" in refusal(random_logits(1), row)


@pytest.mark.parametrize(
    ("new_ids", "reason"),
    [([], None), ([5], None), ([5, 2], "stop"), ([3], "stop"), ([5] * 20, "length"), ([5] * 19 + [2], "stop")],
)
def test_finish_reason(new_ids: list[int], reason: str | None) -> None:
    assert finish_reason(params(eos_token_ids=(2, 3)), new_ids) == reason


EXTREMES: dict[str, dict[str, Any]] = {
    "cold": {"do_sample": True, "temperature": 1e-30},
    "hot": {"do_sample": True, "temperature": 1e30},
    "penalty": {"repetition_penalty": 1e6, "logit_bias": ((5, 1e20), (6, -1e300))},
    "small penalty": {"repetition_penalty": 1e-6, "sequence_bias": (((5,), 1e20), ((5, 6), 1e20))},
    "counts": {"presence_penalty": -1e20, "frequency_penalty": -1e20},
    "growth": {"exponential_decay_length_penalty": (0, 1e300), "eos_token_ids": (2,)},
    "growth of what is large": {
        "exponential_decay_length_penalty": (0, 1e300),
        "eos_token_ids": (5,),
        "logit_bias": ((5, 1e20),),
        "repetition_penalty": 1e-6,
    },
}


@pytest.mark.parametrize("name", EXTREMES)
def test_scores_stay_numbers_under_the_most_extreme_settings(name: str) -> None:
    row = SamplingRow(params(**EXTREMES[name]), [5, 6], [5, 5, 6])
    with np.errstate(all="raise", under="ignore"):
        (found,) = sample(random_logits(1), [row])
    best = int(random_logits(1).argmax())
    expected = {"cold": best, "penalty": 5, "small penalty": 5, "counts": 5, "growth of what is large": 5}
    if name in expected:
        assert found.token_ids == [expected[name]]


def test_biases_of_sequences_add_up() -> None:
    """Those of single tokens and of sequences that end here, in whatever order they are given."""
    biases = (((5,), 1.0), ((6, 5), 2.0), ((5, 6, 5), 4.0), ((7, 5), 100.0), ((6, 9), 8.0), ((6, 5, 6, 5), 100.0))
    logits = torch.zeros(1, VOCAB)
    for order in (biases, biases[::-1]):
        row = SamplingRow(params(sequence_bias=order, logprobs=True), [5], [6])
        (found,) = sample(logits, [row])
        assert found.token_ids == [9]
        assert found.logprobs == pytest.approx([8 - np.log(np.exp(8) + np.exp(7) + VOCAB - 2)], abs=LOGPROB_ERROR)
