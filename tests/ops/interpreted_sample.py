"""The sampling kernel on the CPU; run by test_kernels_interpreted.py, or by hand with TRITON_INTERPRET=1.

What it decides is what the NumPy sampler chooses, whatever the error of the card's exponentials and logarithms.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from backends.cuda.sampler_cases import DEVICE_KINDS, check, make_row, random_logits
from tolerances import assert_close
from triton.runtime.interpreter import InterpreterBuilder

from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.kernels import sample as kernels
from ruprompt_fast.kernels import sampling_draw, sampling_limits, sampling_scores
from ruprompt_fast.ops import SettingsFlag, SettingsWord, Undecided, sample_reference
from ruprompt_fast.ops.cuda.sample import reads_pieces
from ruprompt_fast.ops.sample import RACE_BAND
from ruprompt_fast.sampling.noise import gumbel, noise_key, random_words
from ruprompt_fast.sampling.sampling_rows import SamplingRow

CARD_ERROR = 2.0**-21  # relative, of ex2.approx and lg2.approx


@pytest.fixture
def rough_functions(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Exponentials and logarithms with the error of a card's, to one side or the other."""
    rng = np.random.default_rng(0)
    for name in ("create_exp", "create_log"):
        exact = getattr(InterpreterBuilder, name)

        def rough(self: Any, argument: Any, exact: Any = exact) -> Any:
            result = exact(self, argument)
            result.data = (result.data * (1 + CARD_ERROR * rng.choice([-1, 1], result.data.shape))).astype(np.float32)
            return result

        monkeypatch.setattr(InterpreterBuilder, name, rough)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row has two blocks or more, and those that can win are gathered in one of them."""
    monkeypatch.setattr(kernels, "BLOCK", 512)


@triton.jit
def random_words_kernel(keys_ptr, out_ptr, size, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    words = sampling_draw.random_words(ids, tl.load(keys_ptr + row * 2), tl.load(keys_ptr + row * 2 + 1))
    tl.store(out_ptr + row * size + ids, words.to(tl.int32, bitcast=True), mask=ids < size)


@pytest.mark.parametrize("size", [1, 17, 4097])
def test_words_of_noise_are_the_host_s(size: int) -> None:
    keys = [noise_key(seed, stream, 3) for seed in (0, 2**64 - 1) for stream in range(2)]
    out = torch.zeros(len(keys), size, dtype=torch.int32)
    words = torch.from_numpy(np.array(keys, dtype=np.uint32).view(np.int32))
    random_words_kernel[(len(keys), triton.cdiv(size, 4096))](words, out, size, BLOCK=4096)
    for row, key in zip(out, keys, strict=True):
        np.testing.assert_array_equal(row.numpy().view(np.uint32), random_words(key, size))


@triton.jit
def log_exponential_kernel(words_ptr, out_ptr, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    words = tl.load(words_ptr + places).to(tl.uint32, bitcast=True)
    tl.store(out_ptr + places, sampling_draw.log_exponential(words))


@pytest.mark.usefixtures("rough_functions")
def test_the_noise_is_within_the_band_of_the_host_s() -> None:
    powers = 2 ** np.arange(33, dtype=np.int64)
    near = np.concatenate((powers, powers - 1, 2**32 - powers, 2**28 + powers[:20], 2**28 - powers[:20]))
    words = np.concatenate((near[near < 2**32], np.random.default_rng(0).integers(0, 2**32, 2**15 - 200)))[: 2**14]
    words = words.astype(np.uint32)
    out = torch.zeros(len(words))
    log_exponential_kernel[(1,)](torch.from_numpy(words.view(np.int32)), out, BLOCK=len(words))
    exact = np.log(-np.log1p(-(words.astype(np.float64) + 0.5) * 2.0**-32))
    assert abs(out.numpy() - exact).max() < RACE_BAND / 8


def test_gathering_keeps_the_order() -> None:
    """Twice, the second time among the ids that are left."""
    generator = np.random.default_rng(0)
    scores = torch.from_numpy(generator.normal(size=1024).astype(np.float32))
    ids, expected = torch.full((1024,), -1, dtype=torch.int32), scores.clone()
    size = 1024
    for is_gathered, least, depth in ((False, 0.2, 100.0), (True, 0.2, 2.0)):
        count = torch.zeros(1, dtype=torch.int32)
        largest = float(expected.max())
        gather_kernel[(1,)](scores, ids, count, largest, least, depth, size, is_gathered, BLOCK=256)
        kept = ((expected >= least) & (largest - expected <= depth)).nonzero()[:, 0]
        size = int(count)
        assert ids[:size].tolist() == kept.tolist()
        assert torch.equal(scores[:size], expected[kept])
        assert scores[size : -(-size // 256) * 256].isneginf().all()


@triton.jit
def gather_kernel(
    scores_ptr, ids_ptr, count_ptr, largest, least, depth, size, IS_GATHERED: tl.constexpr, BLOCK: tl.constexpr
):
    count = sampling_limits.gather(scores_ptr, ids_ptr, largest, least, depth, size, IS_GATHERED, BLOCK)
    tl.store(count_ptr, count)


def rows_of(kind: dict[str, Any], count: int, **arguments: Any) -> list[SamplingRow | None]:
    return [make_row(kind, num_new=seed % 5, seed=seed, **arguments) for seed in range(count)]


@pytest.mark.usefixtures("rough_functions", "small_blocks")
@pytest.mark.parametrize("kind", DEVICE_KINDS.values(), ids=DEVICE_KINDS)
def test_what_it_decides_is_the_host_s_choice(kind: dict[str, Any]) -> None:
    for dtype, spread in ((torch.float32, 3.0), (torch.bfloat16, 1.0), (torch.float16, 0.01)):
        step = check(rows_of(kind, 3), random_logits(3, spread=spread, dtype=dtype))
        assert step.undecided == [0, 0, 0]


@pytest.mark.parametrize("vocab_size", [1, 15, 16, 17, 31, 32, 33, 4097])
def test_vocabularies_of_any_size(vocab_size: int) -> None:
    kinds = ({}, DEVICE_KINDS["all"], DEVICE_KINDS["top-k and top-p"], {"do_sample": True, "top_p": 0.5})
    rows = [make_row(kind, vocab_size=vocab_size, seed=seed) for seed, kind in enumerate(kinds)]
    for dtype in (torch.float32, torch.float16):
        logits = random_logits(len(rows), dtype=dtype, vocab_size=vocab_size)
        check(rows, logits, (), vocab_size)
        check(rows, logits[:, :vocab_size].contiguous(), (0,) if vocab_size > 1 else (), vocab_size)


@pytest.mark.usefixtures("small_blocks")
def test_numbers_that_are_there_many_times() -> None:
    """A few different logits, so that every limit cuts equal ones apart."""
    logits = random_logits(6).round().to(torch.float16)
    for settings in ({"top_p": 0.7}, {"top_k": 11}, {"top_k": 90, "top_p": 0.5, "logprobs": True}, {"min_p": 0.13}):
        step = check(rows_of({"do_sample": True, **settings}, 6), logits)
        assert step.undecided == [0] * 6
    equal = torch.zeros_like(logits)
    assert check(rows_of({"do_sample": True, "top_p": 0.3}, 6), equal).undecided == [0] * 6


def test_tokens_that_are_ruled_out_and_scores_far_apart() -> None:
    logits = random_logits(4, spread=1e4)
    logits[0, 20:] = -torch.inf
    logits[1] = torch.linspace(-3e38, 3e38, logits.shape[1])
    logits[2] = torch.linspace(0, 1e-38, logits.shape[1])
    for kind in ("all", "top-k", "top-p", "repetition"):
        check(rows_of(DEVICE_KINDS[kind], 4), logits)


@pytest.mark.parametrize("kind", ["greedy", "all", "suppressed"])
def test_rows_without_numbers(kind: str) -> None:
    logits = random_logits(4)
    logits[0, 50], logits[1, 50], logits[2] = float("nan"), float("inf"), float("-inf")
    logits[3, 5] = float("nan")  # a banned id
    step = check(rows_of(DEVICE_KINDS[kind], 4), logits)
    assert step.undecided == [Undecided.NOT_FINITE] * 3 + [0]


def test_where_rounding_decides_the_host_does() -> None:
    logits = random_logits(12, spread=0.0)
    logits[:, 2:] = -torch.inf
    assert set(check(rows_of({"do_sample": True, "top_p": 0.5}, 12), logits).undecided) == {0, Undecided.AMBIGUOUS}
    logits[:, 1] = float(np.log(np.float32(0.1)))
    step = check(rows_of({"do_sample": True, "min_p": 0.1}, 12), logits)
    assert set(step.undecided) == {0, Undecided.AMBIGUOUS}
    first, second = gumbel(noise_key(0, 0, 0), 2)
    logits[0, 1] = float(first - second)
    assert check(rows_of({"do_sample": True}, 1), logits[:1]).undecided == [Undecided.AMBIGUOUS]


@pytest.mark.usefixtures("small_blocks")
def test_scores_of_one_depth_that_are_cut_apart() -> None:
    logits = random_logits(8, spread=0.0)
    logits[:, :-5] = torch.linspace(1e-9, 2e-9, logits.shape[1] - 5).flip(0)
    logits[:, 7] = 5.0
    step = check(rows_of({"do_sample": True, "top_p": 0.5}, 8), logits)
    assert Undecided.AMBIGUOUS in step.undecided


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("last", [3, 7, 700, 1006], ids=["counted", "counted too", "not counted", "virtual"])
def test_counts_with_a_token_that_is_on_the_device_only(last: int) -> None:
    row, logits = make_row({"frequency_penalty": 0.5, "logprobs": True}, num_new=0), random_logits(1, spread=0.3)
    row.new_ids += [3, 7, 3, 8]
    logits[0, [3, 7, 700]] = 3.0
    sampler = DeviceSampler(1003, (), torch.device("cpu"))
    settings, seen = (np.zeros((1, size), np.int32) for size in (sampler.words_per_row, sampler.seen_words))
    sampler.stage([row], settings, seen, [1])
    arguments = (logits, torch.from_numpy(settings), torch.from_numpy(seen), torch.tensor([last], dtype=torch.int32))
    found, expected = sampler.launch(*arguments), sample_reference(*arguments, vocab_size=1003)
    assert torch.equal(found[:, :2], expected[:, :2])
    assert_close(found[:, 2].view(torch.float32), expected[:, 2].view(torch.float32))


def test_rows_that_are_padding_or_the_host_s_are_not_touched() -> None:
    step = check([None, make_row({"no_repeat_ngram_size": 2})], torch.full((2, 1008), float("nan")))
    assert step.result.tolist() == [[0, 0, 0, 0], [0, Undecided.FOR_HOST, 0, 0]]


def test_which_rows_are_read_in_pieces() -> None:
    table = torch.zeros(3, 24, dtype=torch.float16)
    assert reads_pieces(table[:, :17], 24)
    assert reads_pieces(table[1:, 8:], 16)
    assert not reads_pieces(table[1:, 8:], 24)  # the last row's memory ends before
    assert not reads_pieces(table[:, 4:], 16)
    assert not reads_pieces(torch.zeros(2, 17, dtype=torch.float16), 24)
    assert reads_pieces(table[:1], 24)


def test_the_kernel_and_the_host_mean_the_same_words() -> None:
    names = [word.name for word in SettingsWord if word is not SettingsWord.FLAGS]
    assert [getattr(sampling_scores, name).value for name in names] == [SettingsWord[name] for name in names]
    assert [getattr(sampling_scores, str(flag.name)).value for flag in SettingsFlag] == list(SettingsFlag)
    reasons = (sampling_scores.LEFT_TO_HOST, sampling_scores.AMBIGUOUS, sampling_scores.NOT_FINITE)
    assert [reason.value for reason in reasons] == list(Undecided)
