"""A prompt's text with the text to generate after it, tokenized as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import ContextLengthError, UnsupportedModelError
from ruprompt_fast.prompts.format.encoding import TokenizedLayout, tokenize_layout
from ruprompt_fast.prompts.format.layout import Field, Layout
from ruprompt_fast.prompts.format.spans import TokenSpan
from ruprompt_fast.prompts.format.special_tokens import Reading, place
from ruprompt_fast.prompts.format.template import PROMPT_TOKEN
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A name that no template's field can have.
_TARGET = "{target}"

_SAMPLE = "a"


@dataclass
class TextWithTarget:
    """The ids of a formatted text, its target and the end-of-text token.

    Attributes:
        input_ids: the ids, special tokens of the tokenizer included.
        target_start: the first of the target's tokens; one that joins it with the text before it is the target's.
        target_stop: after its last token, the end token included.
        fields_start: the first token that holds something of a field or of the target.
        prefix_len: how many ids come before the first field, up to and including the last virtual token there.
        spans: the tokens of every field.
    """

    input_ids: list[int]
    target_start: int
    target_stop: int
    fields_start: int
    prefix_len: int
    spans: Mapping[str, TokenSpan]

    def begin_with(self, token_ids: Sequence[int]) -> None:
        """Put these ids in front of a target before which nothing comes."""
        self.input_ids[:0] = token_ids
        self.target_start += len(token_ids)
        self.target_stop += len(token_ids)

    def cut(self, max_tokens: int | None, field: str | None) -> None:
        """Cut the end of a field off, as far as the text is longer than ``max_tokens``; nothing else is ever cut.

        Raises:
            ContextLengthError: the text is too long, and there is no field to cut or it is too short.
        """
        length = len(self.input_ids)
        excess = 0 if max_tokens is None else length - max_tokens
        if excess <= 0:
            return
        if field is None:
            raise ContextLengthError(
                f"an example has {length} tokens; max_tokens, or the model's context, is {max_tokens}. Name the "
                "truncation_field to cut, or filter the data."
            )
        span = self.spans[field]
        available = span.inner_stop - span.inner_start
        if available < excess:
            raise ContextLengthError(
                f"an example has {length} tokens, {excess} more than max_tokens={max_tokens} (or the model's context), "
                f"and the field {field!r} has only {available} to cut. Raise max_tokens or filter the data."
            )
        del self.input_ids[span.inner_stop - excess : span.inner_stop]
        self.target_start -= excess
        self.target_stop -= excess


def tokenize_with_targets(
    layout: Layout,
    fields: Sequence[Mapping[str, Any]],
    targets: Sequence[Any] | None,
    tokenizer: PreTrainedTokenizerBase,
    marker: str,
    runs: Sequence[Sequence[int]],
    is_continued: bool,
) -> list[TextWithTarget]:
    """Fill in the fields, append targets and end-of-text token, and tokenize; whatever the texts contain is plain text.

    Args:
        layout: the prompt's layout.
        fields: the fields of each text.
        targets: the target of each text, which a decoder generates; None for texts without target and end token.
        tokenizer: the tokenizer; it is not changed.
        marker: the marker of the prompt's text form.
        runs: the ids of each run of virtual tokens.
        is_continued: whether a decoder continues the text, see
            :class:`~ruprompt_fast.prompts.format.special_tokens.Reading`.

    Raises:
        MissingFieldError, FieldTypeError: a field or a target is missing, or not a string.
        UnsupportedModelError: the tokenizer has no end-of-text token.
        TemplateError: it lacks another special token, which the layout names.
    """
    state = tokenizer_state(tokenizer)
    if targets is None:
        placed = state.place(tokenizer, layout, Reading(is_continued=is_continued))
    else:
        fields = [{**item, _TARGET: target} for item, target in zip(fields, targets, strict=True)]
        end = _end_id(tokenizer)
        placed = place(layout, state.specials(tokenizer), Reading(is_continued=True), [Field(_TARGET)], (end,))
    tokenized = tokenize_layout(placed, fields, tokenizer, marker, state)
    return [_text_with_target(result, runs) for result in tokenized]


def tokenize_decoder_targets(targets: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The ids that an encoder-decoder generates: each target as plain text, between what the tokenizer puts around one.

    The end-of-text token comes after every target, once, also where the tokenizer leaves it to its users.

    Raises:
        UnsupportedModelError: the tokenizer has no end-of-text token, or reads the same text in two ways.
    """
    end = _end_id(tokenizer)
    leading, trailing = _around_targets(tokenizer)
    if end not in trailing:
        trailing = [*trailing, end]
    private = tokenizer_state(tokenizer).private(tokenizer, PROMPT_TOKEN)
    return [[*leading, *ids, *trailing] for ids in private.tokenize_targets(targets)]


def _end_id(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UnsupportedModelError("training needs an end-of-text token; set tokenizer.eos_token.")
    return int(tokenizer.eos_token_id)


def _around_targets(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer puts in front of a text to generate, such as the language's token, and after it."""
    text: list[int] = tokenizer(text_target=_SAMPLE, add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer(text_target=_SAMPLE)["input_ids"]
    for start in range(len(whole) - len(text) + 1):
        if whole[start : start + len(text)] == text:
            return whole[:start], whole[start + len(text) :]
    raise UnsupportedModelError(
        f"{type(tokenizer).__name__} gives {whole} for a target with its special tokens and {text} without them; "
        "expected the one inside the other."
    )


def _text_with_target(tokenized: TokenizedLayout, runs: Sequence[Sequence[int]]) -> TextWithTarget:
    ids = tokenized.expand(runs)
    spans = tokenized.spans()
    start = spans[_TARGET].start if _TARGET in spans else len(ids)
    fields_start = min((span.start for span in spans.values()), default=len(ids))
    return TextWithTarget(ids, start, len(ids), fields_start, tokenized.prefix_len(), spans)
