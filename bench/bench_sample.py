"""Choosing tokens on a CUDA device: our kernel beside the operators of torch that transformers chooses with.

Both are replayed as CUDA graphs: 1 and 64 rows over ruGPT-3's 50,257 tokens, in half precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from kernel_cases import NEEDS_CARD, ROUNDS, captured
from torch import Tensor

from ruprompt_fast.backends.cuda.sampler import DeviceSampler
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.sampling.sampling_rows import SamplingRow

VOCAB, STRIDE = 50257, 50264
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy, repetition penalty": {"repetition_penalty": 1.2},
    "sampled": {"do_sample": True},
    "top-k 50": {"do_sample": True, "top_k": 50},
    "top-p 0.9": {"do_sample": True, "top_p": 0.9, "temperature": 0.8},
    "top-k 50, top-p 0.9": {"do_sample": True, "top_k": 50, "top_p": 0.9},
}


def with_our_kernel(kind: dict[str, Any], logits: Tensor) -> Callable[[], Tensor]:
    """The launch of a step whose rows were staged before."""
    rows: list[SamplingRow | None] = [
        SamplingRow(SamplingParams(max_new_tokens=99, seed=seed, **kind), list(range(500)), [7])
        for seed in range(len(logits))
    ]
    sampler = DeviceSampler(VOCAB, (), logits.device)
    settings = np.zeros((len(rows), sampler.words_per_row), dtype=np.int32)
    seen = np.zeros((len(rows), sampler.seen_words), dtype=np.int32)
    sampler.stage(rows, settings, seen)
    inputs = [torch.from_numpy(array).to(logits.device) for array in (settings, seen)]
    last_ids = torch.full((len(rows),), 7, dtype=torch.int32, device=logits.device)
    return lambda: sampler.launch(logits, *inputs, last_ids)


def with_torch(kind: dict[str, Any], logits: Tensor) -> Callable[[], Tensor]:
    """Penalty, temperature, top-k, top-p and the draw with an operator each, in transformers' way."""
    history = torch.arange(500, device=logits.device).expand(len(logits), -1)

    def choose() -> Tensor:
        scores = logits[:, :VOCAB].float()
        if "repetition_penalty" in kind:
            found, penalty = scores.gather(1, history), kind["repetition_penalty"]
            scores = scores.scatter(1, history, torch.where(found < 0, found * penalty, found / penalty))
        if not kind.get("do_sample"):
            return scores.argmax(dim=-1)
        scores = scores / kind.get("temperature", 1.0)
        if "top_k" in kind:
            scores = scores.masked_fill(scores < scores.topk(kind["top_k"]).values[:, -1:], -torch.inf)
        if "top_p" in kind:
            ascending, order = scores.sort()
            is_cut = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - kind["top_p"]
            scores = scores.masked_fill(is_cut.scatter(1, order, is_cut), -torch.inf)
        return torch.multinomial(scores.softmax(dim=-1), num_samples=1)

    return choose


CANDIDATES = {"kernel": with_our_kernel, "torch": with_torch}


@NEEDS_CARD
@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("num_rows", [1, 64])
@pytest.mark.parametrize("kind", KINDS)
def bench_sample(benchmark: Any, kind: str, num_rows: int, candidate: str) -> None:
    benchmark.group = f"{kind}, {num_rows} rows"
    generator = torch.Generator("cuda").manual_seed(0)
    logits = torch.randn(num_rows, STRIDE, generator=generator, device="cuda").mul(3).half()[:, :VOCAB]
    replay = captured(CANDIDATES[candidate](KINDS[kind], logits))
    benchmark.pedantic(replay, rounds=ROUNDS, warmup_rounds=5)
