"""The noise: its distribution, its independence, and that it is the same wherever it is drawn."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ruprompt_fast.sampling.noise import gumbel, noise_key, random_words, sample_index, uniform

DRAWS = 20000


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """The statistic in standard deviations from its mean; about normal for many draws."""
    expected = probabilities * counts.sum()
    degrees = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / math.sqrt(2 * degrees))


def slow_word(seed: int, stream: int, step: int, token: int) -> int:
    """The definition, one number at a time: splitmix64 makes the key, lowbias32 twice the word."""

    def splitmix64(state: int) -> int:
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        state = (state ^ state >> 27) * 0x94D049BB133111EB % 2**64
        return state ^ state >> 31

    def lowbias32(word: int) -> int:
        word = (word ^ word >> 16) * 0x7FEB352D % 2**32
        word = (word ^ word >> 15) * 0x846CA68B % 2**32
        return word ^ word >> 16

    assert splitmix64(0) == 0xE220A8397B1DCDAF  # as published
    first, second = divmod(splitmix64(splitmix64(splitmix64(seed) + stream) + step), 2**32)
    return lowbias32(lowbias32(token ^ first) ^ second)


@given(seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 100), step=st.integers(0, 5000), size=st.integers(1, 9))
def test_words_are_what_the_definition_says(seed: int, stream: int, step: int, size: int) -> None:
    expected = [slow_word(seed, stream, step, token) for token in range(size)]
    assert random_words(noise_key(seed, stream, step), size).tolist() == expected


def test_known_words() -> None:
    """What a seed gives must not change between versions."""
    assert random_words(noise_key(1, 2, 3), 3).tolist() == [2931446440, 1237979853, 1267149561]


@given(seed=st.integers(0, 2**64 - 1), stream=st.integers(0, 100), step=st.integers(0, 5000), size=st.integers(1, 300))
def test_a_tokens_noise_depends_on_its_id_alone(seed: int, stream: int, step: int, size: int) -> None:
    key = noise_key(seed, stream, step)
    every = random_words(key, size)
    some = np.arange(size)[:: max(1, size // 7)]
    assert random_words(key, some).tolist() == every[some].tolist()
    assert gumbel(key, some).tolist() == gumbel(key, size)[some].tolist()


@pytest.mark.parametrize("axis", ["tokens", "steps", "streams", "seeds"])
def test_uniform_along_every_axis(axis: str) -> None:
    if axis == "tokens":
        numbers = uniform(noise_key(1, 2, 3), DRAWS)
    else:
        keys = {"steps": (7, 0, None), "streams": (7, None, 0), "seeds": (None, 0, 0)}[axis]
        draws = ([index if part is None else part for part in keys] for index in range(DRAWS))
        numbers = np.array([uniform(noise_key(*draw), np.array([5]))[0] for draw in draws])
    assert numbers.min() > 0.0
    assert numbers.max() < 1.0
    counts = np.bincount((numbers * 100).astype(int), minlength=100)
    assert abs(chi_square(counts, np.full(100, 0.01))) < 4.5
    # Neighbours are independent: the serial pairs fill the unit square evenly.
    pairs = (numbers[:-1:2] * 10).astype(int) * 10 + (numbers[1::2] * 10).astype(int)
    assert abs(chi_square(np.bincount(pairs, minlength=100), np.full(100, 0.01))) < 4.5


@pytest.mark.parametrize(("first", "second"), [((3, 0, 0), (3, 0, 1)), ((3, 0, 0), (3, 1, 0)), ((3, 0, 0), (4, 0, 0))])
def test_neighbouring_keys_are_independent(first: tuple[int, int, int], second: tuple[int, int, int]) -> None:
    a, b = uniform(noise_key(*first), DRAWS), uniform(noise_key(*second), DRAWS)
    pairs = (a * 10).astype(int) * 10 + (b * 10).astype(int)
    assert abs(chi_square(np.bincount(pairs, minlength=100), np.full(100, 0.01))) < 4.5
    assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / math.sqrt(DRAWS)


def test_every_bit_is_fair_and_every_input_bit_matters() -> None:
    words = random_words(noise_key(9, 0, 0), DRAWS)
    bits = (words[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * 0.5 / math.sqrt(DRAWS)
    for bit in range(16):
        flipped = random_words(noise_key(9, 0, 0), np.arange(DRAWS) ^ (1 << bit))
        changed = ((words ^ flipped)[:, None] >> np.arange(32, dtype=np.uint32)) & np.uint32(1)
        # A pair of ids that differ in the bit appears twice, so half of the draws count.
        assert np.abs(changed.mean(axis=0) - 0.5).max() < 5.0 * 0.5 / math.sqrt(DRAWS / 2)


def test_gumbel_moments() -> None:
    noise = gumbel(noise_key(5, 0, 0), 200000)
    assert abs(noise.mean() - np.euler_gamma) < 4.5 * math.pi / math.sqrt(6 * len(noise))
    assert abs(noise.var() - math.pi**2 / 6) < 0.03


@given(
    seed=st.integers(0, 2**64 - 1),
    spread=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 100.0]),
    size=st.sampled_from([1, 2, 17, 256, 257, 1000]),
    banned=st.booleans(),
)
def test_the_race_is_won_by_the_largest_sum(seed: int, spread: float, size: int, banned: bool) -> None:
    scores = np.random.default_rng(seed).normal(0, spread, size).astype(np.float32)
    if banned and size > 1:
        scores[::2] = -np.inf
    key = noise_key(seed, 0, 0)
    assert sample_index(scores, key) == int(np.argmax(scores + gumbel(key, size)))
    kept = np.flatnonzero(np.isfinite(scores))
    assert kept[sample_index(scores[kept], key, kept)] == sample_index(scores, key)


def test_samples_have_the_probabilities() -> None:
    scores = np.log(np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01], dtype=np.float32))
    drawn = [sample_index(scores, noise_key(11, step % 3, step)) for step in range(DRAWS)]
    counts = np.bincount(drawn, minlength=6)
    assert abs(chi_square(counts, np.exp(scores.astype(np.float64)))) < 4.5
    following = np.array(drawn[:-1:2]) * 6 + np.array(drawn[1::2])
    joint = np.outer(np.exp(scores), np.exp(scores)).ravel()
    likely = joint * (DRAWS / 2) > 5
    assert abs(chi_square(np.bincount(following, minlength=36)[likely], joint[likely] / joint[likely].sum())) < 4.5
