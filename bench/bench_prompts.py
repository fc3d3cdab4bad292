"""What prompts cost: a long one against none, and many in one batch against one.

Every round has new texts, so that no keys of texts are found again; the prompts have been used before. Wanted: the
throughput with a 100-row prompt at least 0.95 of that with none (a ratio of times up to 1.05) and its first token after
at most 1.1 of the time; 64 prompts at least 0.97 of one (1.03).
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import pytest
from engine_models import QUICK, random_prompt, text_of, write_gpt2
from peers import Ours, Task
from turns import Candidate, Timing, clock, in_turns, names, report

NUM_REQUESTS = 4 if QUICK else 64
NUM_NEW_TOKENS = 4 if QUICK else 32
ROUNDS, FIRST_TOKEN_ROUNDS = (1, 2) if QUICK else (5, 40)

COST_OF_A_PROMPT = ["no prompt", "100-row prompt"]
COST_OF_A_MIX = ["one prompt", f"{NUM_REQUESTS} prompts"]

Names = Callable[[int], str | None]
Compare = Callable[[str], dict[str, Timing]]

pytestmark = pytest.mark.benchmark(timer=clock)


class Bench:
    """A model with the prompts ``p0``, ``p1``, ... of 100 rows, and batches for it."""

    def __init__(self, model: Ours, words: list[str]) -> None:
        self.model = model
        self.words = words

    def tasks(self, what: str, round: int, name: Names, count: int, num_new_tokens: int) -> list[Task]:
        """Texts of 16 to 64 tokens, new ones for every comparison and round: pages of earlier ones are still there."""
        generator = random.Random(f"{what} {round}")
        texts = [text_of(self.words, generator.randint(16, 64), generator) for _ in range(count)]
        return [Task(text, num_new_tokens, name(index)) for index, text in enumerate(texts)]

    def throughput(self, what: str, name: Names) -> Candidate:
        return Candidate(
            lambda round: self.model.generate(self.tasks(what, round, name, NUM_REQUESTS, NUM_NEW_TOKENS)),
            rounds=ROUNDS,
        )

    def first_token(self, what: str, name: Names) -> Candidate:
        return Candidate(
            lambda round: self.model.generate(self.tasks(what, round, name, 1, 1)), rounds=FIRST_TOKEN_ROUNDS
        )


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    folder = tmp_path_factory.mktemp("gpt2")
    words = write_gpt2(folder)
    prompts = {f"p{seed}": random_prompt("<P*100>{text}", 100, seed) for seed in range(NUM_REQUESTS)}
    bench = Bench(Ours(folder, "float32", prompts), words)

    def none(index: int) -> str | None:
        return None

    def one(index: int) -> str | None:
        return "p0"

    def each(index: int) -> str | None:
        return f"p{index}"

    names_of = {
        "throughput": (bench.throughput, zip(COST_OF_A_PROMPT, (none, one), strict=True)),
        "first token": (bench.first_token, zip(COST_OF_A_PROMPT, (none, one), strict=True)),
        "mix": (bench.throughput, zip(COST_OF_A_MIX, (one, each), strict=True)),
    }

    @functools.cache
    def timings(what: str) -> dict[str, Timing]:
        make, candidates = names_of[what]
        return in_turns({name: functools.partial(make, what, prompt_of) for name, prompt_of in candidates})

    return timings


@names(COST_OF_A_PROMPT)
def bench_prompt_is_free(benchmark: Any, compare: Compare, candidate: str) -> None:
    benchmark.group = f"{NUM_REQUESTS} requests, {NUM_NEW_TOKENS} new tokens each"
    report(benchmark, compare("throughput")[candidate], NUM_REQUESTS * NUM_NEW_TOKENS)


@names(COST_OF_A_PROMPT)
def bench_first_token(benchmark: Any, compare: Compare, candidate: str) -> None:
    benchmark.group = "first token of one request"
    report(benchmark, compare("first token")[candidate])


@names(COST_OF_A_MIX)
def bench_mix_is_free(benchmark: Any, compare: Compare, candidate: str) -> None:
    benchmark.group = f"{NUM_REQUESTS} requests over one prompt and over {NUM_REQUESTS}"
    report(benchmark, compare("mix")[candidate], NUM_REQUESTS * NUM_NEW_TOKENS)
