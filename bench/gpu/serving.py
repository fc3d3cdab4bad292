"""What prompts cost on the engine, and the mixed workload against who can run one prompt at a time."""

from __future__ import annotations

import functools
import random
import statistics
from collections.abc import Callable
from typing import Any

from bench_mixed import LEADING_ROWS, TRAILING_ROWS, lengths
from engine_models import all_words, random_prompt, text_of, word_tokenizer
from peers import Task, Transformers
from prompt_peers import Peft, RuPrompts

from gpu.clock import Candidate, in_turns, wall_seconds
from gpu.decode import AsPeer, ours, record_errors
from gpu.engines import measured_gpt2
from gpu.measurement import Record, Setting, need
from ruprompt_fast import Prompt

NUM_PEER_PROMPTS = 2
"""How many of the prompts the peers run; they take them one after another, all alike."""


@functools.cache
def _mixed_prompts() -> dict[str, Prompt]:
    return {
        f"p{seed}": random_prompt(f"<P*{leading}>{{text}}<P*{TRAILING_ROWS}>", leading + TRAILING_ROWS, seed)
        for seed, leading in enumerate(LEADING_ROWS)
    }


def _mixed_tasks(round: int, num_prompts: int) -> list[Task]:
    """Those of :mod:`bench_mixed`, of the first prompts."""
    words, generator = all_words(), random.Random(1 + round)
    tasks = [
        Task(text_of(words, num_input, generator), num_new, f"p{index % len(LEADING_ROWS)}")
        for index, (num_input, num_new) in enumerate(lengths())
    ]
    names = [f"p{seed}" for seed in range(num_prompts)]
    return [task for task in tasks if task.prompt in names]


def mixed(setting: Setting, record: Record) -> None:
    """96 requests over 6 prompts; ruPrompts' way and PEFT run two of the prompts, which is a third of the work."""
    prompts = _mixed_prompts()
    some = {f"p{seed}": prompts[f"p{seed}"] for seed in range(NUM_PEER_PROMPTS)}
    num_prompts = {"ours": len(LEADING_ROWS), "ruPrompts": NUM_PEER_PROMPTS, "PEFT": NUM_PEER_PROMPTS}

    def candidate(name: str, make: Callable[[], Any], rounds: int) -> Candidate:
        system = make()
        return Candidate(
            lambda round: system.generate(_mixed_tasks(round, num_prompts[name])),
            rounds=rounds,
            budget_s=8.0,
            warm_up=name == "ours",
        )

    def plain() -> Transformers:
        return Transformers(measured_gpt2(setting), word_tokenizer())

    def peft() -> Peft:
        need("peft")
        return Peft(plain(), some)

    makers = {
        "ours": (lambda: AsPeer(ours(setting, prompts)), 2),
        "ruPrompts": (lambda: RuPrompts(plain(), some), 1),
        "PEFT": (peft, 1),
    }
    timings = in_turns(
        {name: functools.partial(candidate, name, make, rounds) for name, (make, rounds) in makers.items()},
        setting.device,
    )
    rates = {
        name: sum(task.num_new_tokens for task in _mixed_tasks(1, num_prompts[name])) / timing.median
        for name, timing in timings.items()
        if timing.seconds
    }
    record({f"{name}, tokens/s": rate for name, rate in rates.items()})
    record(
        {f"times {name}": rates["ours"] / rate for name, rate in rates.items() if name != "ours" and "ours" in rates}
    )
    record_errors(timings, record)


class PromptCosts:
    """A model with the prompts ``p0``, ``p1``, ... of 100 rows, and batches of new texts for it."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.num_requests, self.num_new = (4, 4) if setting.toy else (64, 64)
        self.num_rows = 20 if setting.toy else 100
        # Beyond one for each request some that nothing has used yet.
        self.num_prompts = self.num_requests + (2 if setting.toy else 10)
        template = f"<P*{self.num_rows}>{{text}}"
        prompts = {f"p{seed}": random_prompt(template, self.num_rows, seed) for seed in range(self.num_prompts)}
        self.model = AsPeer(ours(setting, prompts))
        self._texts = random.Random(0)

    def text(self) -> str:
        """A new one of 16 to 64 tokens."""
        return text_of(all_words(), self._texts.randint(16, 64), self._texts)

    def batch(self, name: Callable[[int], str | None]) -> Callable[[], Candidate]:
        """A candidate that runs one request for each prompt of this choice."""

        def run(round: int) -> None:
            self.model.generate([Task(self.text(), self.num_new, name(index)) for index in range(self.num_requests)])

        return lambda: Candidate(run, rounds=5, budget_s=4.0)

    def first_token_s(self, name: str) -> float:
        """Seconds to the first token of one request."""
        task = Task(self.text(), 1, name)
        return wall_seconds(lambda: self.model.generate([task]), self.setting.device)


@functools.cache
def prompt_costs(setting: Setting) -> PromptCosts:
    """One for all of its measurements."""
    return PromptCosts(setting)


def prompts_are_free(setting: Setting, record: Record) -> None:
    """Throughput with a long prompt against none, and with a prompt of its own for each request against one for all."""
    costs = prompt_costs(setting)
    timings = in_turns(
        {
            "no prompt": costs.batch(lambda index: None),
            "one prompt": costs.batch(lambda index: "p0"),
            "different prompts": costs.batch(lambda index: f"p{index}"),
        },
        setting.device,
    )
    num_tokens = costs.num_requests * costs.num_new
    record({f"{name}, tokens/s": num_tokens / timing.median for name, timing in timings.items() if timing.seconds})
    for timing in timings.values():
        if timing.error:
            raise RuntimeError(timing.error)
    none, one, many = (timing.median for timing in timings.values())
    record({"a prompt is free": none / one, "mixed is free": one / many})


def first_token(setting: Setting, record: Record) -> None:
    """Time to the first token after a prefix that is in the cache, and after one that nothing has used before."""
    costs = prompt_costs(setting)
    unused = [f"p{seed}" for seed in range(costs.num_requests, costs.num_prompts)]
    costs.first_token_s("p0")
    seconds = {"prefix computed": [costs.first_token_s(name) for name in unused]}
    seconds["prefix in the cache"] = [costs.first_token_s(name) for name in unused]
    record({f"{name}, ms": 1e3 * statistics.median(values) for name, values in seconds.items()})
