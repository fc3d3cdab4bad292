"""A prompt's text with the text to generate behind it, tokenized as one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import ContextLengthError, UnsupportedModelError
from ruprompt_fast.prompts.encoding import TokenizedLayout, tokenize_layout
from ruprompt_fast.prompts.layout import Field, Layout
from ruprompt_fast.prompts.spans import TokenSpan

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Names that no template's field can have.
_TARGET = "{target}"
_END = "{end}"


@dataclass
class TextWithTarget:
    """The ids of a formatted text, its target and the end-of-text token.

    Attributes:
        input_ids: the ids, special tokens of the tokenizer included.
        target_start: the first of the target's tokens; one that joins it with the text before it is the target's.
        target_stop: behind its last token, the end token included.
        fields_start: the first token that holds something of a field or of the target.
        prefix_len: how many ids stand before the first field, up to and including the last soft row there.
        spans: the tokens of every field.
    """

    input_ids: list[int]
    target_start: int
    target_stop: int
    fields_start: int
    prefix_len: int
    spans: Mapping[str, TokenSpan]

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
) -> list[TextWithTarget]:
    """Fill in the fields, append targets and end-of-text token, and tokenize; whatever the texts contain is plain text.

    Args:
        layout: the prompt's layout.
        fields: the fields of each text.
        targets: the target of each text; None for texts without target and end token.
        tokenizer: the tokenizer; it is not changed.
        marker: the marker of the prompt's text form.
        runs: the ids of each run of soft rows.

    Raises:
        MissingFieldError, FieldTypeError: a field or a target is missing, or not a string.
        UnsupportedModelError: the tokenizer has no end-of-text token.
    """
    end = tokenizer.eos_token
    if targets is not None and end is None:
        raise UnsupportedModelError("training needs an end-of-text token; set tokenizer.eos_token.")
    if targets is not None:
        layout = Layout([*layout.parts, Field(_TARGET), Field(_END)])
        fields = [{**item, _TARGET: target, _END: end} for item, target in zip(fields, targets, strict=True)]
    tokenized = tokenize_layout(layout, fields, tokenizer, marker)
    return [_text_with_target(result, runs) for result in tokenized]


def _text_with_target(tokenized: TokenizedLayout, runs: Sequence[Sequence[int]]) -> TextWithTarget:
    ids = tokenized.expand(runs)
    spans = tokenized.spans()
    start = min((spans[name].start for name in (_TARGET, _END) if name in spans), default=len(ids))
    stop = spans[_END].stop if _END in spans else start
    fields_start = min((span.start for span in spans.values()), default=len(ids))
    return TextWithTarget(ids, start, stop, fields_start, tokenized.prefix_len(), spans)
