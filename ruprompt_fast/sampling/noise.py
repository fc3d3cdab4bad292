"""Counter-based noise: the number for a token depends on the seed, the stream, the step and its id only.

Sampling from softmax(scores) is taking the largest of ``scores + gumbel`` (Gumbel 1954; Maddison et al. 2014). The
noise is a function of the token's id, so the winner does not depend on which losing tokens are left out before, on the
rest of the batch, or on the order of requests.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from ruprompt_fast.sampling.history import Scores, TokenIds

Key: TypeAlias = tuple[int, int]
"""Two words of 32 bit that select one step's noise."""

_MASK64 = (1 << 64) - 1
_UNIT = 2.0**-32
# Screening runs in float32; its error in the weight of a token that can win is far below this.
_SCREENING_SLACK = 1.001
_UNSCREENED = 256  # comparing this few tokens is faster than screening them


def noise_key(seed: int, stream: int, step: int) -> Key:
    """The key of one step of one stream of random numbers: a chain of splitmix64 (Steele et al. 2014)."""
    mixed = _splitmix64(stream_state(seed, stream) + step)
    return mixed >> 32, mixed & 0xFFFFFFFF


def stream_state(seed: int, stream: int) -> int:
    """What the keys of all steps of a stream are made of, from 0 to 2**64 - 1."""
    state: int = _splitmix64(_splitmix64(seed) + stream)
    return state


def step_keys(states: npt.NDArray[np.uint64], steps: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint32]:
    """:func:`noise_key` of many streams at once, uint32 [n, 2]; ``states`` are of :func:`stream_state`."""
    mixed = _splitmix64(states + steps)
    return np.stack((mixed >> np.uint64(32), mixed & np.uint64(0xFFFFFFFF)), axis=1).astype(np.uint32)


def _splitmix64(value: Any) -> Any:
    """Of an integer, or of every element of a uint64 array."""
    value = (value + 0x9E3779B97F4A7C15) & _MASK64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK64
    return value ^ (value >> 31)


def random_words(key: Key, token_ids: TokenIds | int) -> npt.NDArray[np.uint32]:
    """A uniform word of 32 bit for every token id, or for the ids ``0 .. token_ids - 1``.

    Two rounds of Wellons' ``lowbias32`` finalizer, each after its own word of the key.
    """
    if isinstance(token_ids, int):
        words = _counter(token_ids) ^ np.uint32(key[0])
    else:
        words = token_ids.astype(np.uint32) ^ np.uint32(key[0])
    scratch = np.empty_like(words)
    _finalize(words, scratch)
    words ^= np.uint32(key[1])
    _finalize(words, scratch)
    return words


@lru_cache(maxsize=4)
def _counter(size: int) -> npt.NDArray[np.uint32]:
    return np.arange(size, dtype=np.uint32)


def _finalize(words: npt.NDArray[np.uint32], scratch: npt.NDArray[np.uint32]) -> None:
    """Mix the bits of every word, in place; a bijection."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        words ^= np.right_shift(words, np.uint32(shift), out=scratch)
        words *= np.uint32(factor)
    words ^= np.right_shift(words, np.uint32(16), out=scratch)


def uniform(key: Key, token_ids: TokenIds | int) -> npt.NDArray[np.float64]:
    """Uniform numbers strictly between 0 and 1, one for every token id; multiples of 2**-33."""
    return (random_words(key, token_ids).astype(np.float64) + 0.5) * _UNIT


def gumbel(key: Key, token_ids: TokenIds | int) -> npt.NDArray[np.float64]:
    """Standard Gumbel noise, one number for every token id."""
    return _gumbel(random_words(key, token_ids))


def _gumbel(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
    # The upper tail comes from numbers near zero, where float64 is fine enough; near one it is not.
    noise: npt.NDArray[np.float64] = -np.log(-np.log1p((words.astype(np.float64) + 0.5) * -_UNIT))
    return noise


def sample_index(scores: Scores, key: Key, token_ids: TokenIds | None = None) -> int:
    """Draw one index from softmax(scores): the first largest of ``scores + gumbel``, found without most logarithms.

    An exponential race (E = -log(1 - u), token i finishes at E / weight): as E >= u, a token whose u / weight lies
    beyond some token's finish cannot win. One pass in float32 finds the few that can; they are compared in float64.

    Args:
        scores: unnormalized log-probabilities, float32 [n]; minus infinity is never drawn. The largest must be finite.
        key: of :func:`noise_key`.
        token_ids: the ids that the scores belong to, int64 [n]; ``0 .. n - 1`` by default.
    """
    words = random_words(key, len(scores) if token_ids is None else token_ids)
    if len(scores) <= _UNSCREENED:
        return int(np.argmax(scores + _gumbel(words)))
    weights = np.exp(scores - scores.max())
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        earliest = np.divide(words, weights, dtype=np.float32)
    first = int(np.nanargmin(earliest)) if np.isnan(earliest.min()) else int(earliest.argmin())
    finish = -np.log1p((float(words[first]) + 0.5) * -_UNIT) / _UNIT / float(weights[first])
    able = np.flatnonzero(earliest <= finish * _SCREENING_SLACK)
    return int(able[np.argmax(scores[able] + _gumbel(words[able]))])
