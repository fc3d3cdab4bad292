"""Texts to train on: every batch has the same lengths in another order, and so the same work in every step."""

from __future__ import annotations

import random
from typing import NamedTuple

from engine_models import GPT2_SHAPE, QUICK

BATCH_SIZE = 4 if QUICK else 16
SHORTEST, LONGEST = (4, 10) if QUICK else (40, 90)

# Spread evenly: 1,040 tokens in a batch, of which 520 have labels.
LENGTHS = [SHORTEST + round(k * (LONGEST - SHORTEST) / (BATCH_SIZE - 1)) for k in range(BATCH_SIZE)]
TOKENS_PER_BATCH = sum(LENGTHS)

# The id of the token that ends every text; no other token is it.
END = 0


class Sample(NamedTuple):
    """A text as token ids; the model learns to continue the first half with the second, end included."""

    source: list[int]
    target: list[int]


def samples(num_batches: int) -> list[Sample]:
    """The same random texts for the same number of batches, batch after batch."""
    generator = random.Random(0)
    result = []
    for _ in range(num_batches):
        for length in generator.sample(LENGTHS, BATCH_SIZE):
            ids = [*generator.choices(range(END + 1, GPT2_SHAPE["vocab_size"]), k=length - 1), END]
            result.append(Sample(ids[: length // 2], ids[length // 2 :]))
    return result


def words(ids: list[int]) -> str:
    """The text that ``engine_models.word_tokenizer`` makes these ids of."""
    return " ".join(f"w{index}" for index in ids)
