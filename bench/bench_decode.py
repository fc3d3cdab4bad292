"""Tokens per second while decoding: ours, transformers' ``generate`` and CTranslate2, greedy, no end of text.

Every candidate continues the same batch of random words around a context of 100 tokens. It is timed for one new token
and for 1 + N; the fastest time for one is subtracted, so tokenizing and reading the input count for nobody, and what is
left are N decoding steps. Wanted for GPT-2's shape at batch 8 and 32: float32 1.5 times as fast as CTranslate2 in
float32 and 3 times as fast as transformers; at batch 32 bfloat16 twice as fast as CTranslate2 in int8; at batch 1 int8
no slower than CTranslate2 in int8.
"""

from __future__ import annotations

import copy
import functools
import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from engine_models import QUICK, single_token_words, text_of, write_gpt2
from peers import CTranslate2, Ours, System, Task, Transformers
from real_models import smollm2
from turns import Candidate, Timing, clock, in_turns, names, report

BATCHES = (1, 2) if QUICK else (1, 8, 32)
NUM_INPUT_TOKENS, NUM_NEW_TOKENS = (10, 4) if QUICK else (84, 32)
ROUNDS = 1 if QUICK else 4

GPT2 = ["ours float32", "ours bfloat16", "ours int8", "transformers", "CTranslate2", "CTranslate2 int8"]
SMOLLM2 = ["ours float32", "ours bfloat16", "transformers"]

Compare = Callable[[int], dict[str, Timing]]

pytestmark = pytest.mark.benchmark(timer=clock)


def compare(systems: Mapping[str, Callable[[], System]], words: list[str], batch: int) -> dict[str, Timing]:
    """Tokens per second of every system on the same batch, in turns."""
    generator = random.Random(batch)
    texts = [text_of(words, NUM_INPUT_TOKENS, generator) for _ in range(batch)]

    def candidate(make: Callable[[], System]) -> Candidate:
        system = make()
        short, long = ([Task(text, count) for text in texts] for count in (1, 1 + NUM_NEW_TOKENS))
        return Candidate(lambda _: system.generate(long), lambda _: system.generate(short), ROUNDS)

    return in_turns({name: functools.partial(candidate, make) for name, make in systems.items()})


@pytest.fixture(scope="module")
def compare_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    folder = tmp_path_factory.mktemp("gpt2")
    words = write_gpt2(folder)
    systems: dict[str, Callable[[], System]] = {
        "ours float32": lambda: Ours(folder, "float32"),
        "ours bfloat16": lambda: Ours(folder, "bfloat16"),
        "ours int8": lambda: Ours(folder, "int8"),
        "transformers": lambda: Transformers.from_folder(folder),
        "CTranslate2": lambda: CTranslate2(folder, "float32"),
        "CTranslate2 int8": lambda: CTranslate2(folder, "int8"),
    }
    loaded = {name: functools.cache(make) for name, make in systems.items()}
    return functools.cache(lambda batch: compare(loaded, words, batch))


@pytest.fixture(scope="module")
def compare_smollm2() -> Compare:
    model, tokenizer = smollm2()
    words = single_token_words(tokenizer)
    systems: dict[str, Callable[[], System]] = {
        "ours float32": lambda: Ours(copy.deepcopy(model), "float32", tokenizer=tokenizer),
        "ours bfloat16": lambda: Ours(copy.deepcopy(model), "bfloat16", tokenizer=tokenizer),
        "transformers": lambda: Transformers(model, tokenizer),
    }
    loaded = {name: functools.cache(make) for name, make in systems.items()}
    return functools.cache(lambda batch: compare(loaded, words, batch))


@pytest.mark.parametrize("batch", BATCHES)
@names(GPT2)
def bench_gpt2(benchmark: Any, compare_gpt2: Compare, batch: int, candidate: str) -> None:
    benchmark.group = f"decode, GPT-2 12 x 768, batch {batch}"
    timings = compare_gpt2(batch)
    report(benchmark, timings[candidate], batch * NUM_NEW_TOKENS)


@pytest.mark.parametrize("batch", BATCHES)
@names(SMOLLM2)
def bench_smollm2(benchmark: Any, compare_smollm2: Compare, batch: int, candidate: str) -> None:
    benchmark.group = f"decode, SmolLM2-135M, batch {batch}"
    timings = compare_smollm2(batch)
    report(benchmark, timings[candidate], batch * NUM_NEW_TOKENS)
