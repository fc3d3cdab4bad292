"""The choice of tokens: its checks, its reference's noise; what it chooses is tested in backends/cuda."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends.cuda.sampler_cases import DEVICE_KINDS, Staged, make_row, random_logits

from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import SETTINGS_WORDS, sample
from ruprompt_fast.ops.sample import random_words_reference
from ruprompt_fast.sampling.noise import noise_key, random_words, step_keys, stream_state

VOCAB = 70


def arguments(**others: Any) -> dict[str, Any]:
    """Two rows that want nothing."""
    return {
        "logits": torch.zeros(2, VOCAB + 2),
        "settings": torch.zeros(2, SETTINGS_WORDS, dtype=torch.int32),
        "seen": torch.zeros(2, 3, dtype=torch.int32),
        "last_ids": torch.zeros(2, dtype=torch.int32),
        "vocab_size": VOCAB,
        "banned": torch.zeros(VOCAB, dtype=torch.bool),
        **others,
    }


def test_rows_that_want_nothing_get_nothing() -> None:
    assert not sample(**arguments()).any()
    assert sample(**arguments(logits=torch.full((2, VOCAB), torch.nan))).tolist() == [[0] * 4] * 2
    assert sample(
        **{name: value[:0] if name not in ("vocab_size", "banned") else value for name, value in arguments().items()}
    ).shape == (0, 4)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"logits": torch.zeros(2, VOCAB - 1)}, r"logits must be \[rows, at least 70\], not \[2, 69\]"),
        ({"vocab_size": 0}, "at least 0"),
        ({"logits": torch.zeros(2, VOCAB, dtype=torch.float64)}, "float32, float16 or bfloat16, not torch.float64"),
        ({"logits": torch.zeros(VOCAB, 2).T}, "last dimension of logits must be contiguous"),
        ({"settings": torch.zeros(2, 3, dtype=torch.int32)}, r"settings must be \[2, 16\], int32"),
        ({"settings": torch.zeros(2, SETTINGS_WORDS)}, "not .* of torch.float32"),
        ({"seen": torch.zeros(2, 2, dtype=torch.int32)}, r"seen must be \[2, 3\]"),
        ({"seen": torch.zeros(3, 2, dtype=torch.int32).T}, "with contiguous rows"),
        ({"last_ids": torch.zeros(3, dtype=torch.int32)}, r"last_ids must be \[2\]"),
        ({"last_ids": torch.zeros(2)}, "int32 or int64"),
        ({"banned": torch.zeros(VOCAB - 1, dtype=torch.bool)}, r"banned must be \[at least 70\] of bool"),
        ({"banned": torch.zeros(VOCAB)}, "of bool, not"),
        ({"banned": torch.zeros(VOCAB, dtype=torch.bool, device="meta")}, "on the device of logits, cpu, not on"),
    ],
)
def test_arguments_are_checked(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(TensorArgumentError, match=message):
        sample(**arguments(**changed))


def test_views_of_larger_buffers_are_taken() -> None:
    row = make_row(DEVICE_KINDS["all"], vocab_size=VOCAB)
    staged = Staged([row, None], VOCAB)
    wide = torch.zeros(2, SETTINGS_WORDS + 3, dtype=torch.int32)
    wide[:, :SETTINGS_WORDS] = staged.settings
    logits = random_logits(2, vocab_size=VOCAB)
    expected = sample(logits, staged.settings, staged.seen, staged.last_ids, vocab_size=VOCAB)
    found = sample(logits, wide[:, :SETTINGS_WORDS], staged.seen, staged.last_ids.long(), vocab_size=VOCAB)
    assert torch.equal(found, expected)


def test_the_reference_s_noise_is_the_host_s() -> None:
    keys = [noise_key(seed, 2, 5) for seed in (0, 1, 2**64 - 1)]
    words = random_words_reference(torch.from_numpy(np.array(keys, dtype=np.uint32).view(np.int32)), 5000)
    for row, key in zip(words, keys, strict=True):
        np.testing.assert_array_equal(row.numpy(), random_words(key, 5000))


def test_keys_of_many_streams_are_those_of_each() -> None:
    streams = [(seed, stream) for seed in (0, 7, 2**64 - 1) for stream in range(3)]
    states = np.array([stream_state(*each) for each in streams], dtype=np.uint64)
    keys = step_keys(states, np.arange(9, dtype=np.uint64))
    assert [tuple(key) for key in keys.tolist()] == [noise_key(*each, step) for step, each in enumerate(streams)]
