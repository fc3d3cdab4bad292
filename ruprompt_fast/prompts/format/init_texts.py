"""The tokens that virtual tokens are initialized from: those that a text would have in their place."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, cast

from ruprompt_fast.prompts.format.layout import Field, RowsFromText, TemplatePart, Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that tokenizers do not join with most of those after them.
_BEFORE = (".", "a", "1", "\n")


def ids_in_place(parts: Sequence[TemplatePart], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids of each text of a template that virtual tokens replace, in order.

    At the beginning of the template, or after virtual tokens and special tokens, a text has the ids that it has alone;
    after other text and fields those that it has there, without the word boundary that some tokenizers begin a text
    with.

    Args:
        parts: the template's parts.
        tokenizer: the tokenizer.
    """
    found = []
    for index, part in enumerate(parts):
        if isinstance(part, RowsFromText):
            before = _text_before(parts[:index])
            alone = ids_alone(part.text, tokenizer)
            found.append(alone if before is None else ids_after_text(part.text, tokenizer, before))
    return found


def ids_alone(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of a text on its own, without special tokens."""
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])


def ids_after_text(text: str, tokenizer: PreTrainedTokenizerBase, before: Sequence[str] = ()) -> list[int]:
    """The ids of a text that comes after another one, without special tokens.

    They hold nothing else: where what comes before it would share a token with it, they are those after another text.

    Args:
        text: the text.
        tokenizer: the tokenizer.
        before: what may come before it, the likeliest first; whatever else may.
    """
    alone = ids_alone(text, tokenizer)
    found = []
    for other in (*before, *_BEFORE):
        start = ids_alone(other, tokenizer)
        joined = ids_alone(other + text, tokenizer)
        if joined[: len(start)] == start:
            found.append(joined[len(start) :])
    return alone if not found or alone in found else found[0]


def _text_before(parts: Sequence[TemplatePart]) -> list[str] | None:
    """The text that the parts end with, which may be unknown; None if they end with none."""
    texts = [part.text for part in takewhile(_is_text, reversed(parts)) if isinstance(part, Text | RowsFromText)]
    if texts:
        return ["".join(reversed(texts))]
    return [] if parts and isinstance(parts[-1], Field) else None


def _is_text(part: TemplatePart) -> bool:
    return isinstance(part, Text | RowsFromText)
