"""Odd values of every setting, and what must hold whatever is asked for: an answer or a named error, in bounds.

The fields are those of the installed transformers' ``GenerationConfig`` and our own, so a field that a new version
brings is attacked as well.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from itertools import count
from typing import Any

import numpy as np
import torch
from attack.tally import Outcome
from model_cases import make_prompt
from tiny_models import tiny_model, tiny_tokenizer
from transformers import GenerationConfig

from ruprompt_fast import FastPromptModel
from ruprompt_fast.errors import MAX_MESSAGE_CHARS, EngineStepError, RupromptError

MOST_SECONDS = 30.0
"""Processor time of a request; what else runs on the machine does not count."""

MOST_BYTES = 100 << 20

OWN_FIELDS = ("seed", "presence_penalty", "frequency_penalty", "logit_bias")
FIELDS = (*sorted(name for name in vars(GenerationConfig()) if not name.startswith("_")), *OWN_FIELDS)

Settings = dict[str, Any]

MODES: dict[str, Settings] = {
    "greedy": {},
    "sampled": {"do_sample": True, "seed": 1},
    "beams": {"num_beams": 3},
    "stream": {},
}
BASE: Settings = {"max_new_tokens": 3, "max_time": 1.0}
"""What a cell has besides its setting and mode; the time ends what was asked to be long."""


class Unprintable:
    """An object that can neither be shown nor compared."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    __hash__ = None  # type: ignore[assignment]


def _nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


VALUES: dict[str, Callable[[], Any]] = {
    # made again for every attack: some can be used up
    "None": lambda: None,
    "True": lambda: True,
    "False": lambda: False,
    "0": lambda: 0,
    "1": lambda: 1,
    "2": lambda: 2,
    "-1": lambda: -1,
    "59": lambda: 59,
    "10000": lambda: 10_000,
    "2**31": lambda: 2**31,
    "2**63 - 1": lambda: 2**63 - 1,
    "2**63": lambda: 2**63,
    "-2**64": lambda: -(2**64),
    "10**5000": lambda: 10**5000,
    "0.0": lambda: 0.0,
    "0.5": lambda: 0.5,
    "1.5": lambda: 1.5,
    "-1.0": lambda: -1.0,
    "400.0": lambda: 400.0,
    "1e-300": lambda: 1e-300,
    "1e300": lambda: 1e300,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "-inf": lambda: float("-inf"),
    "1j": lambda: 1j,
    "Fraction": lambda: Fraction(1, 2),
    "Decimal": lambda: Decimal("0.5"),
    "''": lambda: "",
    "'abc'": lambda: "abc",
    "'never'": lambda: "never",
    "'static'": lambda: "static",
    "'offloaded'": lambda: "offloaded",
    "surrogate": lambda: "\ud800",
    "long text": lambda: "а" * 3_000_000,
    "bytes": lambda: b"\xff" * 3_000_000,
    "[]": list,
    "[0]": lambda: [0],
    "[5, 6]": lambda: [5, 6],
    "[59, 60]": lambda: [59, 60],
    "[2**63]": lambda: [2**63],
    "[-1]": lambda: [-1],
    "[None]": lambda: [None],
    "[1.5]": lambda: [1.5],
    "['a']": lambda: ["а"],
    "[[5], [6, 7]]": lambda: [[5], [6, 7]],
    "[[[5], 1.0]]": lambda: [[[5], 1.0]],
    "[[]]": lambda: [[]],
    "every id": lambda: list(range(60)),
    "range": lambda: range(60),
    "many ids": lambda: [5] * 300_000,
    "many texts": lambda: ["а"] * 300_000,
    "many lists": lambda: [[5, 6]] * 300_000,
    "(2, 1.5)": lambda: (2, 1.5),
    "(1, 1e300)": lambda: (1, 1e300),
    "{}": dict,
    "{5: 1.0}": lambda: {5: 1.0},
    "{5: 1e300}": lambda: {5: 1e300},
    "{(5, 6): 2.0}": lambda: {(5, 6): 2.0},
    "{(5,): nan}": lambda: {(5,): float("nan")},
    "{'a': 1}": lambda: {"a": 1},
    "{5}": lambda: {5},
    "many biases": lambda: dict.fromkeys(range(200000), 1.0),
    "tensor": lambda: torch.tensor(3),
    "tensor of floats": lambda: torch.tensor([0.5, 0.5]),
    "tensor of ids": lambda: torch.tensor([5, 6]),
    "meta tensor": lambda: torch.empty(3, device="meta"),
    "large tensor": lambda: torch.zeros(1_000_000),
    "np.int64": lambda: np.int64(3),
    "np.float32": lambda: np.float32(0.5),
    "np.bool": lambda: np.bool_(True),
    "array": lambda: np.array([5, 6]),
    "array of objects": lambda: np.array([None, "а"], dtype=object),
    "generator": lambda: (index for index in range(3)),
    "endless": lambda: count(),
    "object": object,
    "unprintable": Unprintable,
    "type": lambda: int,
    "function": lambda: len,
    "nested": lambda: _nested(500),
}

FEW_VALUES = (
    *("0", "1", "2", "-1", "10000", "2**63", "0.5", "400.0", "nan", "inf", "'abc'", "'static'", "[]", "[5, 6]"),
    *("[[5], [6, 7]]", "every id", "(2, 1.5)", "{(5, 6): 2.0}", "tensor", "endless", "unprintable", "True"),
)
"""For paths that take many times longer than the engine."""


@dataclass
class Target:
    """A model under attack, and what a plain request to it must go on to give."""

    model: FastPromptModel
    token_ids: list[int]
    defaults: Settings

    @classmethod
    def make(cls, family: str) -> Target:
        """A tiny model of the family with one prompt."""
        base, tokenizer = tiny_model(family), tiny_tokenizer()
        prompt = make_prompt("<P*3>{text}", base, tokenizer, 0)
        model = FastPromptModel.from_pretrained(base, {"short": prompt}, tokenizer=tokenizer)
        target = cls(model, [], base.generation_config.to_dict())
        for mode in MODES:  # what is made at the first use counts for nobody
            target.ask(mode, {})
        target.token_ids = target.plain()
        return target

    def ask(self, mode: str, settings: Settings) -> object:
        """A request in a mode with some settings, which win over those of the mode."""
        merged = {**BASE, **MODES[mode], **settings}
        if mode == "stream":
            return list(self.model.stream("да", "short", **merged))
        return self.model.generate("да", "short", **merged)

    def plain(self) -> list[int]:
        """The tokens that a request without odd settings gives."""
        return self.model.generate("нет", "short", max_new_tokens=4, eos_token_id=None)[0].token_ids

    def harm(self) -> str:
        """What the attacks before have changed; empty if nothing."""
        if self.plain() != self.token_ids:
            return "a plain request gives other tokens"
        self.model.check_integrity()
        if self.model.model.generation_config.to_dict() != self.defaults:
            return "model.generation_config has changed"
        return ""


def judge(target: Target, mode: str, settings: Settings) -> tuple[Outcome, str]:
    """Ask, and say how it ended."""
    memory, start = _peak_bytes(), time.process_time()
    outcome, what = _ask(target, mode, settings)
    seconds, growth = time.process_time() - start, _peak_bytes() - memory
    if seconds > MOST_SECONDS:
        return "hung", f"{seconds:.1f} seconds"
    if growth > MOST_BYTES:
        return "wrong", f"{growth >> 20} MiB more"
    return outcome, what


def _ask(target: Target, mode: str, settings: Settings) -> tuple[Outcome, str]:
    try:
        target.ask(mode, settings)
    except RupromptError as error:
        text = str(error)
        if isinstance(error, EngineStepError) and "transformers' generate" not in text:
            return "wrong", f"a step failed, with everything in it: {text[:200]}"
        if len(text) > MAX_MESSAGE_CHARS or not any(name in text for name in _named(settings)):
            return "wrong", f"the message has {len(text)} characters and names {list(settings)}: {text[:200]}"
        return "refused", text
    except Exception as error:
        return "raw", f"{type(error).__name__}: {str(error)[:200]}"
    return "answered", ""


def _named(settings: Settings) -> Iterator[str]:
    """What a refusal has to speak of: a setting, or what all tokens together have come to."""
    yield from settings
    yield from ("logits", "context", "transformers' generate")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
