"""Attacks with threads: many callers on both paths with other settings each, cancels, prompts that come and go."""

from __future__ import annotations

import random
import threading
import time
from typing import Any

from attack.interrupts import FALLBACK
from attack.tally import Tally
from engine.engine_cases import ENDLESS, REQUESTS, assert_nothing_left, serve
from patience import HANG_SECONDS

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import UnknownPromptError

_NUM_THREADS = 16

_SETTINGS: tuple[dict[str, Any], ...] = (
    ENDLESS,
    {"do_sample": True, "seed": 3, "temperature": 1.4},
    {"num_beams": 3, "num_return_sequences": 2},
    {"do_sample": True, "num_return_sequences": 3, "seed": 8},
    {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    {"stop_strings": ["а"], "output_scores": True},
    {**FALLBACK, **ENDLESS},
    {"encoder_repetition_penalty": 1.2, "do_sample": True, "seed": 5},
    {"num_beams": 2, "do_sample": True, "output_scores": True, "seed": 2},
    {"encoder_no_repeat_ngram_size": 1, "output_scores": True},
)

_REFUSED: tuple[dict[str, Any], ...] = (
    {"num_beams": 10_000},
    {"suppress_tokens": [2**63]},
    {"length_penalty": 1e9, "num_beams": 3},
    {"max_new_tokens": 10**6},
    {"temperature": 0.0, "do_sample": True},
)


def attack(seconds: float, seed: int) -> Tally:
    """Attack for about so long; what each thread asks for depends on the seed, how they meet on the machine."""
    tally = Tally("threads")
    model = serve(num_pages=64)
    cases = [
        (item, name, {"max_new_tokens": 6, **settings})
        for item, name in REQUESTS
        for settings in _SETTINGS
        if not (name and "prompt_lookup_num_tokens" in settings and settings.get("do_sample"))
    ]
    alone = [model.generate(item, name, **settings) for item, name, settings in cases]
    end = time.monotonic() + seconds

    def work(index: int) -> None:
        chance = random.Random(seed * 1000 + index)
        while time.monotonic() < end:
            kind = chance.random()
            if kind < 0.08:
                _cancel(model, chance, tally)
            elif kind < 0.16:
                _change_prompts(model, chance, tally, index)
            elif kind < 0.24:
                settings = chance.choice(_REFUSED)
                with tally.judged(str(settings)):
                    model.generate("да", **settings)
                    tally.record("wrong", f"{settings} was answered")
            else:
                number = chance.randrange(len(cases))
                item, name, settings = cases[number]
                with tally.judged(f"{item!r} {name} {settings}"):
                    if model.generate(item, name, **settings) != alone[number]:
                        tally.record("wrong", f"another text for {item!r} {name} {settings}")

    threads = [threading.Thread(target=work, args=(index,), daemon=True) for index in range(_NUM_THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds + HANG_SECONDS)
        if thread.is_alive():
            tally.record("hung", "a thread")
    with tally.judged("afterwards"):
        assert_nothing_left(model)
    return tally


def _cancel(model: FastPromptModel, chance: random.Random, tally: Tally) -> None:
    item, name = chance.choice(REQUESTS)
    with tally.judged("a stream that is closed"):
        stream = model.stream(item, name, max_new_tokens=30, **ENDLESS, **chance.choice([{}, FALLBACK]))
        for _ in range(chance.randrange(6)):
            next(stream, None)
        if chance.random() < 0.7:
            stream.close()


def _change_prompts(model: FastPromptModel, chance: random.Random, tally: Tally, index: int) -> None:
    name, source = f"passing {index}", chance.choice(["short", "around", "bare"])
    with tally.judged("a prompt that comes and goes"):
        model.add_prompt(name, model.prompts[source])
        expected = model.generate("привет", source, max_new_tokens=5, **ENDLESS)[0].token_ids
        if model.generate("привет", name, max_new_tokens=5, **ENDLESS)[0].token_ids != expected:
            tally.record("wrong", f"{name} differs from {source}")
        model.remove_prompt(name)
        try:
            model.generate("привет", name)
            tally.record("wrong", f"{name} is served after it was removed")
        except UnknownPromptError:
            pass
