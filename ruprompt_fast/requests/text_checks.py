"""Checks of callers' inputs: their fields, their texts, and the token ids that they become."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from ruprompt_fast.errors import (
    ContextLengthError,
    ExtraFieldError,
    FieldTypeError,
    MissingFieldError,
    RupromptError,
    TokenIdError,
    shown,
)
from ruprompt_fast.integration.context_length import UNBOUNDED_CONTEXT, context_length

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

_CHARS_PER_POSITION = 100
_CHARS_AT_ONCE = 1_000_000
_LEAST_CHARS_PER_POSITION = 8
# How many names a message lists, and how many characters of each.
_MOST_NAMES = 20
_MOST_NAME_CHARS = 40


def most_chars(model_config: PretrainedConfig) -> int:
    """Maximum number of characters of an input of this model.

    It is 100 for each position of the context, twenty times the average of a token, but not more than a million, which
    take a second or two to tokenize. A context so long that this is less than 8 for each position allows 8 for each.
    """
    positions = context_length(model_config) or UNBOUNDED_CONTEXT
    return min(_CHARS_PER_POSITION * positions, max(_CHARS_AT_ONCE, _LEAST_CHARS_PER_POSITION * positions))


def check_field_names(fields: Mapping[str, str], names: tuple[str, ...], prompt: str | None) -> None:
    """Refuse a request whose fields are not exactly those of the format.

    Raises:
        MissingFieldError: a field of the format is not given.
        ExtraFieldError: a field is given that the format does not have.
    """
    where = f"prompt {shown(prompt)}" if prompt is not None else "a request without a prompt"
    expected = listed(dict.fromkeys(names)) or "no fields"
    missing = [name for name in dict.fromkeys(names) if name not in fields]
    if missing:
        raise MissingFieldError(f"{where} needs the field(s) {expected}; missing: {listed(missing)}.")
    extra = [name for name in fields if name not in names]
    if extra:
        raise ExtraFieldError(f"{where} has the field(s) {expected}; found also: {listed(extra)}. Remove them.")


def listed(names: Collection[object]) -> str:
    """Names, which need not be strings, for a message."""
    few = [
        name if isinstance(name, str) and len(name) <= _MOST_NAME_CHARS else shown(name)
        for name in islice(names, _MOST_NAMES)
    ]
    return ", ".join(few) + (f", ... ({len(names)} in all)" if len(names) > _MOST_NAMES else "")


def check_fields_text(fields: Mapping[str, Any], index: int, limit: int | None) -> None:
    """Refuse an input that no tokenizer can read, or that cannot fit the context.

    Args:
        fields: the input's fields; None leaves a value to the template.
        index: the input's index, for the message.
        limit: maximum number of characters of all fields together; None sets no limit.

    Raises:
        FieldTypeError: a value is not a string, or holds half of a surrogate pair.
        ContextLengthError: there are more characters than ``limit``.
    """
    total = 0
    for name, value in fields.items():
        if value is None:
            continue
        if not isinstance(value, str):
            raise FieldTypeError(
                f"the field {shown(name)} of input {index} must be a string; found {type(value).__name__}. Convert it "
                "with str() first."
            )
        total += len(value)
    if limit is not None and total > limit:
        raise ContextLengthError(
            f"input {index} has {total} characters; no text of more than {limit} is taken for the model's context. "
            "Shorten it."
        )
    for name, value in fields.items():
        check_encodable(value or "", f"the field {shown(name)} of input {index}", FieldTypeError)


def check_encodable(text: str, where: str, error: type[RupromptError]) -> None:
    """Refuse a text with half of a surrogate pair, which is no character and has no bytes.

    Raises:
        RupromptError: of the given type.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as found:
        raise error(
            f"{where} holds {text[found.start]!r} at character {found.start}: half of a surrogate pair, which is no "
            "character. Decode the text with its own encoding, or remove such halves."
        ) from None


def check_ids(
    ids: Iterable[int], table_size: int, tokenizer: PreTrainedTokenizerBase, where: str, end: int | None = None
) -> None:
    """Refuse token ids that the model has no row for.

    Args:
        ids: ids of tokens and of virtual tokens.
        table_size: rows of the model's token table.
        tokenizer: names the token in the message.
        where: names the text in the message.
        end: ids from here on are virtual tokens.

    Raises:
        TokenIdError: there is such an id.
    """
    for token_id in ids:
        if token_id >= table_size and (end is None or token_id < end):
            token = tokenizer.convert_ids_to_tokens(token_id)
            raise TokenIdError(
                f"{where} holds the token {shown(token)} with id {token_id}; the model's table has {table_size} rows. "
                "Call model.resize_token_embeddings(len(tokenizer)) before the model is served and train the new row, "
                "or do not use the token."
            )
