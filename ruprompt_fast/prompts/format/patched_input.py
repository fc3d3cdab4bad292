"""The ids that a patched model reads: the marker's id for every virtual token; its embedding tells them apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch

from ruprompt_fast.errors import NotInitializedError
from ruprompt_fast.prompts.format.encoding import tokenize_layout
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.special_tokens import Reading
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state
from ruprompt_fast.prompts.prompt_context import PromptContext

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedTokenizerBase


def marker_runs(format: PromptFormat, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The marker's id for every row, by run.

    Raises:
        NotInitializedError: the format is not initialized, or its marker was not added to the tokenizer.
    """
    marker_id = tokenizer_state(tokenizer).markers.get(format.prompt_token)
    runs = format.layout.runs
    if marker_id is None and runs:
        raise NotInitializedError(
            f"the tokenizer does not know the marker {format.prompt_token!r}; call prompt.patch(model, tokenizer), or "
            "add_tokens(tokenizer) on the format, before preprocessing."
        )
    return [[marker_id or 0] * count for count in runs]


def tokenize_for_patched(format: PromptFormat, context: PromptContext, fields: Mapping[str, str]) -> BatchEncoding:
    """What a patched model reads of one text; a prompt without fields comes before the field ``text``, if it is given.

    Args:
        format: the prompt's format.
        context: the model that the prompt is attached to, and its tokenizer.
        fields: the value of every field.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 [1, tokens], on the model's device.

    Raises:
        NotInitializedError: nothing is attached.
        MissingFieldError, FieldTypeError: a field has no value, or one that is not a string.
    """
    from transformers import BatchEncoding

    model, tokenizer = context.model, context.tokenizer
    if not context.is_attached or model is None or tokenizer is None:
        raise NotInitializedError("a prompt must be attached to tokenize for its model; call patch() first.")
    format = format.with_text() if fields else format
    state = tokenizer_state(tokenizer)
    placed = state.place(tokenizer, format.layout, Reading(is_continued=not model.config.is_encoder_decoder))
    [tokenized] = tokenize_layout(placed, [fields], tokenizer, format.prompt_token, state)
    ids = torch.tensor([tokenized.expand(marker_runs(format, tokenizer))], device=model.device)
    return BatchEncoding({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
