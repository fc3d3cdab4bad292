"""Attacks with settings: one odd value, or two at once, on the engine and on transformers' own generate."""

from __future__ import annotations

import random
import time

from attack.settings_matrix import FIELDS, MODES, VALUES, Target, judge
from attack.tally import Tally

_FAMILIES = ("llama", "gptj", "t5")
"""One for the engine, a decoder and an encoder-decoder for transformers."""

_FALLBACK = {"prompt_lookup_num_tokens": 2}
"""What sends a request away from the engine."""

_ENOUGH = 20


def attack(seconds: float, seed: int) -> Tally:
    """Attack for about so long; what is tried depends on the seed alone.

    Half of the attacks are one odd value each, drawn again; the other half two or three values together, each of which
    was answered by itself.
    """
    tally, chance = Tally("settings"), random.Random(seed)
    targets = {family: Target.make(family) for family in _FAMILIES}
    end = time.monotonic() + seconds
    answered: list[tuple[str, str]] = []
    while time.monotonic() < end:
        family, mode = chance.choice((*_FAMILIES, "llama", "llama")), chance.choice(tuple(MODES))
        alone = len(answered) < _ENOUGH or chance.random() < 0.5
        chosen = [(chance.choice(FIELDS), chance.choice(tuple(VALUES)))] if alone else chance.choices(answered, k=3)
        settings = {field: VALUES[value]() for field, value in chosen}
        if family == "llama" and chance.random() < 0.2:
            settings = {**_FALLBACK, **settings}
        outcome, found = judge(targets[family], mode, settings)
        if harm := targets[family].harm():
            outcome, found = "wrong", f"the next request: {harm}"
        tally.record(outcome, f"{family} {mode} {chosen}: {found}")
        if alone and outcome == "answered":
            answered += chosen
    return tally
