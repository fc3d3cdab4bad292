"""The device's sampler chooses what the NumPy sampler chooses, and leaves to it what it does not know."""

from __future__ import annotations

import gc
from dataclasses import fields
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from backends.cuda.sampler_cases import (
    BANNED,
    CPU,
    DEVICE_KINDS,
    HOST_KINDS,
    VOCAB,
    Step,
    check,
    make_row,
    random_logits,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from ruprompt_fast.backends.cuda.rehearsal import RehearsalDevice
from ruprompt_fast.backends.cuda.row_history import seen_words
from ruprompt_fast.backends.cuda.row_settings import RowSettings
from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.errors import NonFiniteLogitsError
from ruprompt_fast.ops import SettingsFlag, SettingsWord, Undecided
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.noise import gumbel, noise_key
from ruprompt_fast.sampling.sampler import Sampler
from ruprompt_fast.sampling.sampling_rows import SampledToken, SamplingRow

EVERY_KIND = {**DEVICE_KINDS, **HOST_KINDS}
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


@pytest.mark.parametrize("kind", DEVICE_KINDS.values(), ids=DEVICE_KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_what_the_device_knows_is_decided_on_it(kind: dict[str, Any], dtype: torch.dtype) -> None:
    rows: list[SamplingRow | None] = [make_row(kind, num_new=seed % 11, seed=seed) for seed in range(40)]
    step = check(rows, random_logits(40, dtype=dtype))
    assert step.undecided.count(0) >= 39


@settings(max_examples=60, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(sorted(EVERY_KIND)), min_size=1, max_size=6),
    seed=st.integers(0, 2**64 - 1),
    spread=st.sampled_from([0.0, 1e-30, 1e-3, 0.3, 3.0, 30.0, 1e20]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    is_sparse=st.booleans(),
)
def test_any_rows_are_chosen_as_on_the_host(
    kinds: list[str], seed: int, spread: float, dtype: torch.dtype, is_sparse: bool
) -> None:
    rows: list[SamplingRow | None] = [
        make_row(EVERY_KIND[kind], num_new=index, seed=seed, stream=index % 3) for index, kind in enumerate(kinds)
    ]
    logits = random_logits(1 + len(rows), seed % 1000, spread, dtype)
    if is_sparse:
        logits[:, torch.randperm(VOCAB)[: VOCAB - 20]] = -torch.inf
    step = check([None, *rows], logits)
    assert step.result[0].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("kind", HOST_KINDS.values(), ids=HOST_KINDS)
def test_what_the_device_does_not_know_is_read_at_once(kind: dict[str, Any]) -> None:
    rows = [make_row({}), make_row(kind), None, make_row(kind, seed=1), make_row({"do_sample": True})]
    step = check(rows, random_logits(5))
    assert step.undecided == [0, Undecided.FOR_HOST, 0, Undecided.FOR_HOST, 0]
    assert step.reads == [(2, VOCAB)]


def test_every_setting_is_the_device_s_or_the_host_s() -> None:
    """A new setting fails here until it is in one of the tables; a new processor or filter is the host's by itself."""
    tables = [*DEVICE_KINDS.values(), *HOST_KINDS.values(), NOT_READ]
    assert {field.name for field in fields(SamplingParams)} == {name for table in tables for name in table}
    neutral = RowSettings(make_row({}), VOCAB).words(0)
    for name, value in NOT_READ.items():
        row = make_row({name: value})
        assert row.is_plain_greedy, name
        np.testing.assert_array_equal(RowSettings(row, VOCAB).words(0), neutral, name)


def test_processors_and_filters_of_unknown_kinds_are_the_host_s() -> None:
    for name in ("processors", "filters"):
        for unknown in (np.add, partial(np.add, 1)):
            row = make_row({"do_sample": True})
            setattr(row, name, (unknown,))
            assert RowSettings(row, VOCAB).words(3)[SettingsWord.FLAGS] & SettingsFlag.FOR_HOST


def test_filters_in_another_order_are_the_host_s() -> None:
    row = make_row({"do_sample": True, "top_k": 3, "top_p": 0.5})
    row.filters = row.filters[::-1]
    assert RowSettings(row, VOCAB).words(3)[SettingsWord.FLAGS] & SettingsFlag.FOR_HOST


def test_several_samples_are_the_host_s_and_several_equal_tokens_the_device_s() -> None:
    rows = [make_row({"do_sample": True}, num_samples=3), make_row({"logprobs": True}, num_samples=3)]
    step = check(rows, random_logits(2))
    assert step.undecided == [Undecided.FOR_HOST, 0]
    assert [len(chosen.token_ids) for chosen in step.chosen if isinstance(chosen, SampledToken)] == [3, 3]


@pytest.mark.parametrize("kind", DEVICE_KINDS.values(), ids=DEVICE_KINDS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_broken_row_gets_the_host_s_error(kind: dict[str, Any], value: float) -> None:
    logits = random_logits(3)
    logits[1, slice(None) if value < 0 else 17] = value
    step = check([make_row(kind)] * 3, logits)
    assert step.undecided[1] == Undecided.NOT_FINITE
    assert isinstance(step.chosen[1], NonFiniteLogitsError)


def test_numbers_of_banned_ids_do_not_matter() -> None:
    logits = random_logits(2)
    logits[:, BANNED[0]], logits[:, BANNED[1]], logits[:, 2] = float("nan"), float("inf"), float("nan")
    step = check([make_row({}), make_row({"suppress_tokens": (2,)})], logits)
    assert step.undecided == [Undecided.NOT_FINITE, 0]


def test_a_vocabulary_of_which_all_is_banned_leaves_nothing() -> None:
    step = check([make_row({})], random_logits(1), tuple(range(VOCAB)))
    assert isinstance(step.chosen[0], NonFiniteLogitsError)


def test_limits_where_rounding_decides_are_the_host_s() -> None:
    """Half of the probability lies on one side of each limit, to the last bit; the draw falls near it or not."""
    logits = random_logits(40, spread=0.0)
    logits[:, 2:VOCAB] = -torch.inf
    rows: list[SamplingRow | None] = [make_row({"do_sample": True, "top_p": 0.5}, seed=seed) for seed in range(40)]
    step = check(rows, logits)
    assert set(step.undecided) == {0, Undecided.AMBIGUOUS}
    logits[:, 1] = float(np.log(np.float32(0.1)))
    rows = [make_row({"do_sample": True, "min_p": 0.1}, seed=seed) for seed in range(40)]
    assert set(check(rows, logits).undecided) == {0, Undecided.AMBIGUOUS}


def test_a_draw_that_is_nearly_even_is_the_host_s() -> None:
    row = make_row({"do_sample": True})
    logits = random_logits(1, spread=0.0)
    logits[:, 2:VOCAB] = -torch.inf
    noise = gumbel(noise_key(0, 0, 3), 2)
    logits[0, 1] = float(noise[0] - noise[1])
    assert check([row], logits).undecided == [Undecided.AMBIGUOUS]
    logits[0, 1] += 3e-4
    assert check([row], logits).undecided == [0]


def test_scores_of_one_depth_that_are_cut_apart_are_the_host_s() -> None:
    """Far below the largest, different scores round to one depth: the host may sort them by either."""
    logits = random_logits(60, spread=0.0)
    logits[:, :VOCAB] = torch.linspace(1e-9, 2e-9, VOCAB).flip(0)
    logits[:, 7] = 5.0
    rows: list[SamplingRow | None] = [make_row({"do_sample": True, "top_p": 0.5}, seed=seed) for seed in range(60)]
    step = check(rows, logits)
    assert Undecided.AMBIGUOUS in step.undecided


def test_a_long_list_of_bans_is_the_host_s_while_it_holds() -> None:
    kind = {"suppress_tokens": tuple(range(6)), "begin_suppress_tokens": (6, 7), "logprobs": True}
    kind |= {"min_new_tokens": 2, "eos_token_ids": (8,)}
    row = make_row(kind, num_new=0)
    undecided = []
    for step in range(4):
        undecided += check([row], random_logits(1, seed=step)).undecided
        row.new_ids.append(3)
    assert undecided == [Undecided.FOR_HOST, 0, 0, 0]


@pytest.mark.parametrize("penalty", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
@pytest.mark.parametrize("last", [0, 3, 8], ids=["of the input", "generated before", "new"])
def test_tokens_that_are_on_the_device_only_count(penalty: str, last: int) -> None:
    """A step is staged before the token before it is known on the host."""
    kind = {"do_sample": True, penalty: 1.5, "min_new_tokens": 4, "eos_token_ids": (2,)}
    row, whole = make_row(kind), make_row(kind)
    whole.new_ids.append([*whole.input_ids, *whole.new_ids, 700][last])
    logits = random_logits(1, spread=0.0)
    logits[0, whole.new_ids[-1]] = 9.0
    sampler = DeviceSampler(VOCAB, BANNED, CPU)
    chosen = []
    for each, in_flight in ((row, [1]), (whole, None)):
        words = np.zeros((1, sampler.words_per_row), np.int32)
        seen = np.zeros((1, sampler.seen_words), np.int32)
        assert sampler.stage([each], words, seen, in_flight)
        inputs = (torch.from_numpy(array) for array in (words, seen))
        chosen.append(sampler.launch(logits, *inputs, torch.tensor([whole.new_ids[-1]])))
        assert words[0, SettingsWord.BANNED] == -1
    assert torch.equal(*chosen)
    check([whole], logits)


@pytest.mark.parametrize("num_new", [1, 400, 700])
def test_counts_of_a_long_text(num_new: int) -> None:
    kind = {"presence_penalty": 0.1, "frequency_penalty": 0.3}
    rows: list[SamplingRow | None] = [make_row(kind, num_new, seed, 50257) for seed in range(3)]
    for row in rows:
        assert row is not None
        row.new_ids.extend(row.new_ids[: num_new // 2])
    step = check(rows, random_logits(3, vocab_size=50257, spread=0.1), (), 50257)
    assert step.undecided == [Undecided.FOR_HOST if num_new == 700 else 0] * 3


def test_counts_grow_from_step_to_step() -> None:
    row, sampler = make_row({"frequency_penalty": 2.0}, num_new=0), DeviceSampler(VOCAB, (), CPU)
    logits = random_logits(1, spread=1.0)
    for _ in range(20):
        step = Step(sampler, [row], logits)
        assert step.chosen == Sampler(VOCAB).sample(logits, [row])
        assert isinstance(step.chosen[0], SampledToken)
        row.new_ids += step.chosen[0].token_ids
    assert Undecided.FOR_HOST not in step.undecided or len(set(row.new_ids)) > 10


def test_rows_are_kept_while_they_live_and_take_in_new_tokens() -> None:
    sampler = DeviceSampler(VOCAB, (), CPU)
    row = make_row({"repetition_penalty": 5.0}, num_new=0)
    words, seen = np.zeros((1, sampler.words_per_row), np.int32), np.zeros((1, sampler.seen_words), np.int32)
    for _ in range(5):
        row.new_ids.append(len(row.new_ids) * 31)
        assert sampler.stage([row], words, seen)
        bits = np.unpackbits(seen.view(np.uint8), bitorder="little").nonzero()[0]
        assert set(bits) == {token for token in [*row.input_ids, *row.new_ids] if token < VOCAB}
    assert len(sampler._known) == 1
    del row
    gc.collect()
    assert not sampler._known


def test_a_step_without_penalties_needs_no_masks() -> None:
    sampler = DeviceSampler(VOCAB, (), CPU)
    words, seen = np.ones((2, sampler.words_per_row), np.int32), np.ones((2, sampler.seen_words), np.int32)
    assert not sampler.stage([None, make_row({"do_sample": True})], words, seen)
    assert seen.all()
    assert not words[0].any()
    assert sampler.seen_words == seen_words(VOCAB) == 32


def test_a_recorded_launch_follows_its_buffers_and_waits_for_nothing() -> None:
    device, sampler = RehearsalDevice(), DeviceSampler(VOCAB, BANNED, CPU)
    settings, seen = (np.zeros((2, size), np.int32) for size in (sampler.words_per_row, sampler.seen_words))
    inputs = torch.from_numpy(settings), torch.from_numpy(seen), torch.zeros(2, dtype=torch.int32)
    logits = random_logits(2)
    graph = device.capture(lambda: [sampler.launch(logits, *inputs)])
    for kind in ("all", "repetition", "frequency", "greedy"):
        rows: list[SamplingRow | None] = [make_row(DEVICE_KINDS[kind]), None]
        sampler.stage(rows, settings, seen)
        inputs[2][0] = rows[0].new_ids[-1] if rows[0] is not None else 0
        logits += 0.1 * torch.randn(logits.shape)
        graph.replay()
        chosen = sampler.finish(rows, graph.outputs[0].numpy(), logits, torch.clone)
        assert chosen[0] == Step(sampler, rows, logits).chosen[0]
    assert device.num_fetches == 0


def test_nothing_is_read_where_all_is_decided() -> None:
    step = Step(DeviceSampler(VOCAB, (), CPU), [make_row({}), None], random_logits(2))
    assert step.reads == []
    assert step.chosen[1] is None
