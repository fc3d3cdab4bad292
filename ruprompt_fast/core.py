"""The dataclasses that users get back. Imports nothing of the package."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Class: TypeAlias = str | int | float
"""A class of a classification, as the caller names it."""


@dataclass(frozen=True)
class GenerationOutput:
    """One generated continuation.

    Attributes:
        text: the continuation, without the input and without special tokens.
        token_ids: its token ids; the end-of-text token is included if the model wrote one.
        prompt: name of the prompt that was used, of an ensemble ``name/k`` for the member that wrote it, or None.
        finish_reason: ``"stop"`` (end of text or a stop string), ``"length"`` (``max_new_tokens`` or ``max_length``) or
            ``"time"`` (``max_time``).
        logprobs: log-probability of every token of ``token_ids``, or None unless ``output_scores=True`` was asked for.
    """

    text: str
    token_ids: list[int]
    prompt: str | None
    finish_reason: str
    logprobs: list[float] | None = None


@dataclass(frozen=True)
class ClassificationOutput:
    """The verdict on one input.

    Attributes:
        label: the most probable label, or the one that most members of an ensemble choose; a class, where words were
            given for classes.
        probabilities: for every label, its probability among the labels; they sum to 1.
        prompt: name of the prompt or ensemble that was used, or None.
    """

    label: Class
    probabilities: dict[Class, float]
    prompt: str | None
