"""What the choice of tokens computes, its checks, and on a CUDA device its kernel; see also backends/cuda."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from backends.cuda.sampler_cases import DEVICE_KINDS, HOST_KINDS, check, make_row, random_logits
from torch import Tensor

from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.errors import TensorArgumentError
from ruprompt_fast.ops import SETTINGS_WORDS, sample
from ruprompt_fast.ops.sample import random_words_reference
from ruprompt_fast.sampling.noise import noise_key, random_words, step_keys, stream_state
from ruprompt_fast.sampling.sampling_rows import SamplingRow

NEEDS_CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
VOCAB = 70
CUDA = torch.device("cuda")


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


class Staged:
    """What a step's rows want, as tensors."""

    def __init__(self, rows: list[SamplingRow | None], vocab_size: int, device: str = "cpu") -> None:
        self.sampler = DeviceSampler(vocab_size, (), torch.device(device))
        settings = np.zeros((len(rows), self.sampler.words_per_row), dtype=np.int32)
        seen = np.zeros((len(rows), self.sampler.seen_words), dtype=np.int32)
        self.sampler.stage(rows, settings, seen)
        self.settings, self.seen = torch.from_numpy(settings).to(device), torch.from_numpy(seen).to(device)
        self.last_ids = torch.tensor([0 if row is None else row.input_ids[-1] for row in rows], device=device)

    def launch(self, logits: Tensor) -> Tensor:
        return self.sampler.launch(logits, self.settings, self.seen, self.last_ids)


@NEEDS_CARD
@pytest.mark.parametrize("kind", {**DEVICE_KINDS, **HOST_KINDS}.values(), ids={**DEVICE_KINDS, **HOST_KINDS})
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("vocab_size", [1003, 50257])
def test_on_a_card(kind: dict[str, Any], dtype: torch.dtype, vocab_size: int) -> None:
    rows: list[SamplingRow | None] = [
        make_row(kind, num_new=seed % 5, seed=seed, vocab_size=vocab_size) for seed in range(60)
    ]
    for spread in (0.01, 1.0, 4.0):
        logits = random_logits(60, spread=spread, dtype=dtype, vocab_size=vocab_size)
        step = check([None, *rows[1:]], logits.to(CUDA), (5,), vocab_size)
        assert step.result[0].tolist() == [0, 0, 0, 0]
        if kind in DEVICE_KINDS.values() and "top_p" not in kind:
            assert step.undecided.count(0) >= 58


@NEEDS_CARD
def test_a_card_does_not_wait_and_follows_its_buffers() -> None:
    staged = [
        Staged([make_row(DEVICE_KINDS[kind]) for kind in kinds], 1003, "cuda")
        for kinds in (("greedy", "all"), ("top-p", "repetition"))
    ]
    logits = random_logits(2, dtype=torch.float16).to(CUDA)
    expected = [each.launch(logits).cpu() for each in staged]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = staged[0].launch(logits)
    graph.replay()
    assert torch.equal(out.cpu(), expected[0])
    staged[0].settings.copy_(staged[1].settings)
    staged[0].seen.copy_(staged[1].seen)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        graph.replay()
        staged[1].launch(logits)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(out.cpu(), expected[1])
