"""What a row's penalties need to know of its tokens, as the words of ``seen`` in :func:`ruprompt_fast.ops.sample`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from ruprompt_fast.sampling.sampling_rows import SamplingRow

Words: TypeAlias = npt.NDArray[np.int32]

_HEADER = 2
_WORDS_PER_TOKEN = 3


def seen_words(vocab_size: int) -> int:
    """Words of a bit mask over the vocabulary."""
    return -(-vocab_size // 32)


class RowHistory(Protocol):
    """The tokens of one row, kept from step to step."""

    def write(self, words: Words, new_ids: Sequence[int], in_flight: int, /) -> bool:
        """Write what the kernel needs; whether there is room for it.

        Args:
            words: int32 [seen_words], to write to.
            new_ids: the row's new tokens; those of the call before are their beginning.
            in_flight: how many of its tokens, 0 or 1, are on the device only.
        """
        ...


class SeenTokens:
    """The bit mask of the tokens that a row has read or generated.

    Args:
        row: its ids. Those beyond the vocabulary are virtual tokens, which do not count.
        vocab_size: how many tokens there are.
    """

    def __init__(self, row: SamplingRow, vocab_size: int) -> None:
        is_seen = np.zeros(seen_words(vocab_size) * 32, dtype=np.bool_)
        is_seen[row.input_array[row.input_array < vocab_size]] = True
        self._bits: npt.NDArray[np.uint32] = np.packbits(is_seen, bitorder="little").view("<u4")
        self._mask = self._bits.view(np.int32)
        self._num_read = 0

    def write(self, words: Words, new_ids: Sequence[int], in_flight: int) -> bool:
        """See :class:`RowHistory`; the kernel adds the token that is in flight."""
        for place in range(self._num_read, len(new_ids)):
            token = new_ids[place]
            self._bits[token >> 5] |= np.uint32(1 << (token & 31))
        self._num_read = len(new_ids)
        words[:] = self._mask
        return True


class CountedTokens:
    """How much the scores of the tokens that a row has generated are lowered, by how often it has.

    Args:
        presence: is subtracted once.
        frequency: is subtracted for every time.
    """

    def __init__(self, presence: float, frequency: float) -> None:
        self._presence, self._frequency = presence, frequency
        self._places: dict[int, int] = {}
        self._ids = np.zeros(16, dtype=np.int32)
        self._counts = np.zeros(16, dtype=np.int64)
        self._num_read = 0

    def write(self, words: Words, new_ids: Sequence[int], in_flight: int) -> bool:
        """See :class:`RowHistory`.

        The number of different tokens, what a new one loses if it is in flight, then for every token its id, what it
        loses, and what it loses if it is in flight once more.
        """
        for place in range(self._num_read, len(new_ids)):
            self._count(new_ids[place])
        self._num_read = len(new_ids)
        size = len(self._places)
        if len(words) < _HEADER + _WORDS_PER_TOKEN * size:
            return False
        counts = self._counts[:size]
        words[0] = size
        words[1:2] = self._amounts(np.array([in_flight])) if in_flight else 0
        table = words[_HEADER : _HEADER + _WORDS_PER_TOKEN * size].reshape(_WORDS_PER_TOKEN, size)
        table[0], table[1], table[2] = self._ids[:size], self._amounts(counts), self._amounts(counts + in_flight)
        return True

    def _count(self, token: int) -> None:
        place = self._places.setdefault(token, len(self._places))
        if place == len(self._ids):
            self._ids = np.concatenate((self._ids, np.zeros_like(self._ids)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
        self._ids[place] = token
        self._counts[place] += 1

    def _amounts(self, counts: npt.NDArray[np.int64]) -> Words:
        """As :func:`~ruprompt_fast.sampling.processors.penalize_counts` rounds them; the bits of float32 numbers."""
        return (self._presence + self._frequency * counts).astype(np.float32).view(np.int32)
