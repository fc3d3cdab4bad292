"""How a decoding step of ours grows: with the context, with the batch, with the number of loaded prompts.

A candidate's time is that of one step: the time for 1 + N new tokens less the fastest for one, over N. A group's ratios
are to its smallest candidate.
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

CONTEXTS = (32, 64) if QUICK else (128, 256, 512, 1024, 2048)
BATCHES = (1, 2) if QUICK else (1, 2, 4, 8, 16, 32, 64, 128)
LOADED_PROMPTS = (1, 10) if QUICK else (1, 10, 100, 1000)
NUM_NEW_TOKENS = 4 if QUICK else 16
BATCH_OF_CONTEXTS, CONTEXT_OF_BATCHES, BATCH_OF_PROMPTS, NUM_ROWS = 4, 64, 8, 20
ROUNDS = 1 if QUICK else 3

Compare = Callable[[str], dict[str, Timing]]

pytestmark = pytest.mark.benchmark(timer=clock)


class Bench:
    """A model with the prompt ``p0``, and steps of it."""

    def __init__(self, model: Ours, words: list[str]) -> None:
        self.model = model
        self.words = words

    def steps(self, batch: int, context: int, num_prompts: int | None = None) -> Candidate:
        """Decoding steps of a batch whose last token is at the end of the context.

        Args:
            batch: sequences.
            context: tokens of each at its last step, virtual tokens included.
            num_prompts: how many prompts are to be loaded; all sequences use the first. None uses no prompt.
        """
        generator = random.Random(batch)
        num_rows = 0 if num_prompts is None else NUM_ROWS
        name = None if num_prompts is None else "p0"
        num_text_tokens = context - num_rows - 1 - NUM_NEW_TOKENS
        texts = [text_of(self.words, num_text_tokens, generator) for _ in range(batch)]
        short, long = ([Task(text, count, name) for text in texts] for count in (1, 1 + NUM_NEW_TOKENS))

        def run(tasks: list[Task]) -> Any:
            self.load(num_prompts or 0)
            return self.model.generate(tasks)

        return Candidate(lambda _: run(long), lambda _: run(short), ROUNDS)

    def load(self, num_prompts: int) -> None:
        """Load or remove prompts until there are so many."""
        model = self.model.model
        for index in range(len(model.prompts), num_prompts):
            model.add_prompt(f"p{index}", random_prompt(f"<P*{NUM_ROWS}>{{text}}", NUM_ROWS, index))
        for index in range(num_prompts, len(model.prompts)):
            model.remove_prompt(f"p{index}")


@pytest.fixture(scope="module")
def compare(tmp_path_factory: pytest.TempPathFactory) -> Compare:
    folder = tmp_path_factory.mktemp("gpt2")
    words = write_gpt2(folder)
    bench = Bench(Ours(folder, "float32", max_batch_size=max(BATCHES)), words)
    groups: dict[str, dict[int, Callable[[], Candidate]]] = {
        "context": {size: functools.partial(bench.steps, BATCH_OF_CONTEXTS, size) for size in CONTEXTS},
        "batch": {size: functools.partial(bench.steps, size, CONTEXT_OF_BATCHES) for size in BATCHES},
        "prompts": {
            size: functools.partial(bench.steps, BATCH_OF_PROMPTS, CONTEXT_OF_BATCHES, size) for size in LOADED_PROMPTS
        },
    }

    @functools.cache
    def timings(what: str) -> dict[str, Timing]:
        measured = in_turns({str(size): make for size, make in groups[what].items()})
        for timing in measured.values():
            timing.seconds = [seconds / NUM_NEW_TOKENS for seconds in timing.seconds]
        return measured

    return timings


@names([str(size) for size in CONTEXTS])
def bench_context(benchmark: Any, compare: Compare, candidate: str) -> None:
    benchmark.group = f"a step over the context, batch {BATCH_OF_CONTEXTS}"
    report(benchmark, compare("context")[candidate], BATCH_OF_CONTEXTS)


@names([str(size) for size in BATCHES])
def bench_batch(benchmark: Any, compare: Compare, candidate: str) -> None:
    benchmark.group = f"a step over the batch, context {CONTEXT_OF_BATCHES}"
    report(benchmark, compare("batch")[candidate], int(candidate))


@names([str(size) for size in LOADED_PROMPTS])
def bench_loaded_prompts(benchmark: Any, compare: Compare, candidate: str) -> None:
    benchmark.group = f"a step over the loaded prompts, batch {BATCH_OF_PROMPTS}, context {CONTEXT_OF_BATCHES}"
    report(benchmark, compare("prompts")[candidate], BATCH_OF_PROMPTS)
