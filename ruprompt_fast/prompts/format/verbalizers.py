"""Verbalizers: classes, their label words, and their scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ruprompt_fast.core import Class
from ruprompt_fast.errors import LabelError, shown

if TYPE_CHECKING:
    from torch import Tensor

Labels: TypeAlias = Sequence[str] | Mapping[Any, str | Sequence[str]]
"""Label words, each a class of its own; or for every class its word or words."""


@dataclass(frozen=True)
class Verbalizers:
    """The classes of a classification, each with one word or several.

    Attributes:
        classes: the classes; label words that were given without classes are their own.
        words: the words of the first class, of the second, and so on.
        class_of: for every word the index of its class.
    """

    classes: tuple[Class, ...]
    words: tuple[str, ...]
    class_of: tuple[int, ...]

    def place(self, index: int) -> str:
        """What messages call a word."""
        name = self.classes[self.class_of[index]]
        return f"label {index}" if name == self.words[index] else f"a word of the class {shown(name)}"


def read_labels(labels: Any) -> Verbalizers:
    """The classes and words of a list of label words, or of a mapping from classes to their words.

    Raises:
        LabelError: neither of the two, a class that is no string or number, a word that is no string, or a class
            without a word.
    """
    if isinstance(labels, Mapping):
        groups = [_words_of(name, given) for name, given in labels.items()]
        classes = tuple(labels)
    elif isinstance(labels, Sequence) and not isinstance(labels, (str, bytes)):
        groups = [[_checked(word, f"label {index}")] for index, word in enumerate(labels)]
        classes = tuple(labels)
    else:
        raise LabelError(
            f"labels are a list of label words, or map every class to its word or words; found {shown(labels)}."
        )
    class_of = tuple(index for index, words in enumerate(groups) for _ in words)
    return Verbalizers(classes, tuple(word for words in groups for word in words), class_of)


def class_scores(word_scores: Tensor, class_of: Sequence[int] | None) -> Tensor:
    """Log-probabilities of classes, from those of their words.

    Semantics::

        out[..., k] = logsumexp(word_scores[..., class_of == k], -1)

    Args:
        word_scores: [..., words], log-probabilities.
        class_of: for every word the index of its class, in order; None where each is a class of its own.
    """
    if class_of is None:
        return word_scores
    import torch  # a task is described without it

    num_words = [class_of.count(index) for index in range(max(class_of) + 1)]
    if len(num_words) == len(class_of):
        return word_scores
    return torch.stack([scores.logsumexp(-1) for scores in word_scores.split(num_words, -1)], -1)


def _words_of(name: Any, given: Any) -> list[str]:
    if not isinstance(name, str | int | float):
        raise LabelError(f"a class must be named by a string or a number; found {shown(name)}.")
    words = given if isinstance(given, Sequence) and not isinstance(given, (str, bytes)) else [given]
    if not words:
        raise LabelError(f"every class needs a word; the list of the class {shown(name)} is empty.")
    return [_checked(word, f"a word of the class {shown(name)}") for word in words]


def _checked(word: Any, place: str) -> str:
    if not isinstance(word, str):
        raise LabelError(f"{place} must be a string; found {shown(word)}.")
    return word
