"""What a sequence has read and generated so far, for the score processors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Scores: TypeAlias = npt.NDArray[np.float32]
"""One row of scores over the vocabulary, or over its remaining candidates."""

TokenIds: TypeAlias = npt.NDArray[np.int64]


def token_array(token_ids: Sequence[int] | TokenIds) -> TokenIds:
    """The ids as int64, without a copy if they are int64 already."""
    return np.asarray(token_ids, dtype=np.int64)


class History:
    """The ids of one sequence. Ids beyond the vocabulary are virtual tokens: they only separate what is around them.

    Args:
        input_ids: ids of the input, int64 [input length].
        new_ids: ids generated so far.
    """

    def __init__(self, input_ids: TokenIds, new_ids: Sequence[int]) -> None:
        self.input_ids = input_ids
        self.new_ids = new_ids

    @cached_property
    def ids(self) -> TokenIds:
        """Input and new ids, int64 [input length + new tokens]."""
        return np.concatenate((self.input_ids, token_array(self.new_ids)))

    @property
    def num_input(self) -> int:
        """Tokens of the input, virtual ones included."""
        return len(self.input_ids)

    @property
    def num_new(self) -> int:
        """Tokens generated so far."""
        return len(self.new_ids)

    def tail(self, length: int) -> tuple[int, ...]:
        """The last ``length`` ids, or all where there are fewer."""
        missing = length - len(self.new_ids)
        if missing <= 0:
            return tuple(self.new_ids[len(self.new_ids) - length :])
        start = max(0, self.num_input - missing)
        return (*self.input_ids[start:].tolist(), *self.new_ids)


def within(token_ids: TokenIds, scores: Scores) -> TokenIds:
    """The ids that have a score: virtual tokens have none."""
    return token_ids[token_ids < len(scores)]
