"""The device's sampler chooses what the NumPy sampler chooses, and leaves to it what it does not know."""

from __future__ import annotations

from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import LOGPROB_ERROR

from ruprompt_fast.backends.cuda.row_settings import RowSettings
from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.ops import SettingsFlag, SettingsWord, Undecided
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.sampler import Sampler
from ruprompt_fast.sampling.sampling_rows import SampledToken, SamplingRow

VOCAB = 1003
BANNED = (5, VOCAB - 1)
CPU = torch.device("cpu")
DEVICE_KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy with logprobs": {"logprobs": True},
    "repetition": {"repetition_penalty": 1.3},
    "repetition rewarded": {"repetition_penalty": 0.7, "do_sample": True},
    "end later": {"min_new_tokens": 9, "eos_token_ids": (2, 7)},
    "suppressed": {"suppress_tokens": (1, 2, 3, VOCAB + 4), "begin_suppress_tokens": (4, 900), "logprobs": True},
    "sampled": {"do_sample": True, "logprobs": True},
    "sampled hot": {"do_sample": True, "temperature": 1.7, "logprobs": True},
    "sampled cold": {"do_sample": True, "temperature": 0.05},
    "top-k": {"do_sample": True, "top_k": 50, "temperature": 0.7, "logprobs": True},
    "top-k 1": {"do_sample": True, "top_k": 1},
    "top-k of more than there are": {"do_sample": True, "top_k": 5000, "logprobs": True},
    "top-p": {"do_sample": True, "top_p": 0.9, "logprobs": True},
    "top-p nothing": {"do_sample": True, "top_p": 0.0},
    "top-p nearly all": {"do_sample": True, "top_p": 0.999},
    "top-k and top-p": {"do_sample": True, "top_k": 40, "top_p": 0.8, "repetition_penalty": 1.2},
    "min-p": {"do_sample": True, "min_p": 0.05, "logprobs": True},
    "min-p of the best": {"do_sample": True, "min_p": 1.0},
    "all": {"do_sample": True, "top_k": 300, "top_p": 0.95, "min_p": 0.01, "temperature": 1.3, "logprobs": True},
}
HOST_KINDS: dict[str, dict[str, Any]] = {
    "counts": {"presence_penalty": 0.5},
    "frequencies": {"frequency_penalty": 0.5},
    "n-grams": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": ((7,), (8, 9))},
    "biases": {"sequence_bias": (((3, 4), 1.0),)},
    "logit bias": {"logit_bias": ((3, 1.0),)},
    "forced start": {"forced_bos_token_id": 4},
    "forced end": {"forced_eos_token_ids": (4,)},
    "invalid values": {"remove_invalid_values": True},
    "decay": {"exponential_decay_length_penalty": (1, 1.5), "eos_token_ids": (2,)},
    "many suppressed": {"suppress_tokens": tuple(range(100, 109))},
    "typical": {"do_sample": True, "typical_p": 0.8},
    "epsilon": {"do_sample": True, "epsilon_cutoff": 0.01},
    "eta": {"do_sample": True, "eta_cutoff": 0.01},
    "top-h": {"do_sample": True, "top_h": 0.7},
    "top-k, then another": {"do_sample": True, "top_k": 40, "typical_p": 0.8},
    "very cold": {"do_sample": True, "temperature": 1e-4},
    "infinitely hot": {"do_sample": True, "temperature": 1e39},
    "top-p of one in float32": {"do_sample": True, "top_p": 1 - 1e-9},
    "min-p below float32": {"do_sample": True, "min_p": 1e-40},
}
# What the sampler does not read: it belongs to the job, or has another form as well.
NOT_READ = {
    "max_new_tokens": 7,
    "stop_strings": ("a",),
    "cut_strings": ("a",),
    "max_time": 1.0,
    "num_return_sequences": 2,
    "num_beams": 2,
    "length_penalty": 2.0,
    "early_stopping": True,
    "renormalize_logits": True,
    "seed": 4,
    "eos_token_ids": (3,),
}


def make_row(kind: dict[str, Any], num_new: int = 3, seed: int = 0, **arguments: Any) -> SamplingRow:
    rng = np.random.default_rng(seed)
    params = SamplingParams(**{"max_new_tokens": 20, "seed": seed, **kind})
    ids = [*rng.integers(0, VOCAB, 6).tolist(), VOCAB + 3]
    return SamplingRow(params, ids, rng.integers(0, VOCAB, num_new).tolist(), **arguments)


def random_logits(count: int, seed: int = 0, spread: float = 3.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    numbers = torch.randn(count, VOCAB, generator=torch.Generator().manual_seed(seed)) * spread
    return torch.nn.functional.pad(numbers, (0, 5), value=99.0).to(dtype)


class Step:
    """A step of rows through a sampler, whose reads are counted."""

    def __init__(self, sampler: DeviceSampler, rows: list[SamplingRow | None], logits: torch.Tensor) -> None:
        words = np.full((len(rows), sampler.words_per_row), 77, dtype=np.int32)
        seen = np.full((len(rows), sampler.seen_words), -1, dtype=np.int32)
        self.uses_seen = sampler.stage(rows, words, seen)
        last_ids = torch.tensor([0 if row is None else [*row.input_ids, *row.new_ids][-1] for row in rows])
        tensors = (torch.from_numpy(words), torch.from_numpy(seen), last_ids.int())
        self.result = sampler.launch(logits, *tensors).numpy()
        self.reads: list[torch.Size] = []
        self.chosen = sampler.finish(rows, self.result, logits, self._read)

    def _read(self, tensor: torch.Tensor) -> torch.Tensor:
        self.reads.append(tensor.shape)
        return tensor


def check(rows: list[SamplingRow | None], logits: torch.Tensor, banned: tuple[int, ...] = BANNED) -> Step:
    """A step whose choices are those of the NumPy sampler."""
    step = Step(DeviceSampler(VOCAB, banned, CPU), rows, logits)
    expected = Sampler(VOCAB, banned).sample(logits, rows)
    for found, wanted in zip(step.chosen, expected, strict=True):
        if not isinstance(wanted, SampledToken):
            assert type(found) is type(wanted)
            assert str(found) == str(wanted)
            continue
        assert isinstance(found, SampledToken)
        assert found.token_ids == wanted.token_ids
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=LOGPROB_ERROR)
    return step


@pytest.mark.parametrize("kind", DEVICE_KINDS.values(), ids=DEVICE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_the_device_knows_is_decided_on_it(kind: dict[str, Any], dtype: torch.dtype) -> None:
    rows: list[SamplingRow | None] = [make_row(kind, num_new=seed % 11, seed=seed) for seed in range(40)]
    step = check(rows, random_logits(40, dtype=dtype))
    assert step.result[:, 1].tolist().count(0) >= 38
    assert len(step.reads) <= 1


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted({**DEVICE_KINDS, **HOST_KINDS})), min_size=1, max_size=6),
    seed=st.integers(0, 2**64 - 1),
    spread=st.sampled_from([0.0, 1e-3, 0.3, 3.0, 30.0]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
)
def test_any_rows_are_chosen_as_on_the_host(kinds: list[str], seed: int, spread: float, dtype: torch.dtype) -> None:
    every = {**DEVICE_KINDS, **HOST_KINDS}
    rows: list[SamplingRow | None] = [
        make_row(every[kind], num_new=index, seed=seed, stream=index % 3) for index, kind in enumerate(kinds)
    ]
    step = check([None, *rows], random_logits(1 + len(rows), seed % 1000, spread, dtype))
    assert step.result[0].tolist() == [0, 0, 0, 0]
    assert len(step.reads) <= 1


@pytest.mark.parametrize("kind", HOST_KINDS.values(), ids=HOST_KINDS)
def test_what_the_device_does_not_know_is_read_at_once(kind: dict[str, Any]) -> None:
    rows = [make_row({}), make_row(kind), None, make_row(kind, seed=1), make_row({"do_sample": True})]
    step = check(rows, random_logits(5))
    assert step.result[:, 1].tolist() == [0, Undecided.FOR_HOST, 0, Undecided.FOR_HOST, 0]
    assert step.reads == [(2, VOCAB)]


def test_every_setting_is_the_device_s_or_the_host_s() -> None:
    """A new setting fails here until it is in one of the tables; a new processor or filter is the host's by itself."""
    tables = [*DEVICE_KINDS.values(), *HOST_KINDS.values(), NOT_READ]
    assert {field.name for field in fields(SamplingParams)} == {name for table in tables for name in table}
    for name, value in NOT_READ.items():
        words = RowSettings(make_row({name: value}), VOCAB).words(0)
        np.testing.assert_array_equal(words, RowSettings(make_row({}), VOCAB).words(0))
        assert make_row({name: value}).is_plain_greedy


def test_processors_and_filters_of_unknown_kinds_are_the_host_s() -> None:
    for name in ("processors", "filters"):
        for unknown in (lambda *_: None, partial(np.add, 1)):
            row = make_row({"do_sample": True})
            setattr(row, name, (unknown,))
            assert RowSettings(row, VOCAB).words(3)[SettingsWord.FLAGS] & SettingsFlag.FOR_HOST
