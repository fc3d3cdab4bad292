"""Rows of all kinds, and steps of them through the device's sampler and the host's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tolerances import LOGPROB_ERROR

from ruprompt_fast.backends.cuda.sampler import DeviceSampler
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
    "presence": {"presence_penalty": 1.7, "logprobs": True},
    "frequency": {"presence_penalty": -0.3, "frequency_penalty": 0.7, "do_sample": True, "temperature": 1.1},
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
    "penalties of both kinds": {"presence_penalty": 0.5, "repetition_penalty": 1.2},
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


def make_row(
    kind: dict[str, Any], num_new: int = 3, seed: int = 0, vocab_size: int = VOCAB, **arguments: Any
) -> SamplingRow:
    """A row with random ids, a virtual token last in its input."""
    rng = np.random.default_rng(seed)
    params = SamplingParams(**{"max_new_tokens": 20, "seed": seed, **kind})
    ids = [*rng.integers(0, vocab_size, 6).tolist(), vocab_size + 3]
    return SamplingRow(params, ids, rng.integers(0, vocab_size, num_new).tolist(), **arguments)


def random_logits(
    count: int, seed: int = 0, spread: float = 3.0, dtype: torch.dtype = torch.float32, vocab_size: int = VOCAB
) -> torch.Tensor:
    """Normal numbers, and after them columns that do not count and are the largest."""
    numbers = torch.randn(count, vocab_size, generator=torch.Generator().manual_seed(seed)) * spread
    return torch.nn.functional.pad(numbers, (0, 5), value=99.0).to(dtype)


class Staged:
    """What a step's rows want, as tensors."""

    def __init__(self, rows: list[SamplingRow | None], vocab_size: int, device: str = "cpu") -> None:
        self.sampler = DeviceSampler(vocab_size, (), torch.device(device))
        settings = np.zeros((len(rows), self.sampler.words_per_row), dtype=np.int32)
        seen = np.zeros((len(rows), self.sampler.seen_words), dtype=np.int32)
        self.sampler.stage(rows, settings, seen)
        self.settings, self.seen = torch.from_numpy(settings).to(device), torch.from_numpy(seen).to(device)
        self.last_ids = torch.tensor([0 if row is None else row.input_ids[-1] for row in rows], device=device)

    def launch(self, logits: torch.Tensor) -> torch.Tensor:
        return self.sampler.launch(logits, self.settings, self.seen, self.last_ids)


class Step:
    """A step of rows through a sampler, whose reads are kept."""

    def __init__(self, sampler: DeviceSampler, rows: list[SamplingRow | None], logits: torch.Tensor) -> None:
        words = np.full((len(rows), sampler.words_per_row), 77, dtype=np.int32)
        seen = np.full((len(rows), sampler.seen_words), -1, dtype=np.int32)
        sampler.stage(rows, words, seen)
        last_ids = torch.tensor([0 if row is None else [*row.input_ids, *row.new_ids][-1] for row in rows])
        tensors = [tensor.to(logits.device) for tensor in (torch.from_numpy(words), torch.from_numpy(seen), last_ids)]
        self.result = sampler.launch(logits, *tensors).cpu().numpy()
        self.reads: list[torch.Size] = []
        self.chosen = sampler.finish(rows, self.result, logits, self._read)

    @property
    def undecided(self) -> list[int]:
        """Why the device has not decided, for every row."""
        return self.result[:, 1].tolist()

    def _read(self, tensor: torch.Tensor) -> torch.Tensor:
        self.reads.append(tensor.shape)
        return tensor.cpu()


def check(
    rows: list[SamplingRow | None],
    logits: torch.Tensor,
    banned: tuple[int, ...] = BANNED,
    vocab_size: int = VOCAB,
) -> Step:
    """A step; what it chooses is what the NumPy sampler chooses."""
    step = Step(DeviceSampler(vocab_size, banned, logits.device), rows, logits)
    assert len(step.reads) <= 1
    expected = Sampler(vocab_size, banned).sample(logits, rows)
    for found, wanted in zip(step.chosen, expected, strict=True):
        if not isinstance(wanted, SampledToken):
            assert type(found) is type(wanted)
            assert str(found) == str(wanted)
            continue
        assert isinstance(found, SampledToken)
        assert found.token_ids == wanted.token_ids
        assert found.logprobs == pytest.approx(wanted.logprobs, abs=LOGPROB_ERROR)
    return step
