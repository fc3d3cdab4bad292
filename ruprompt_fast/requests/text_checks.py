"""What comes from outside: fields that a prompt has, texts that a tokenizer can read, ids that a table has rows for."""

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
# Names that a message lists, and characters of each.
_MOST_NAMES = 20
_MOST_NAME_CHARS = 40


def most_chars(model_config: PretrainedConfig) -> int:
    """Characters that an input of this model may have.

    Those are 100 for each position of the context, twenty times what a token has on average; but not more than a
    million, whose tokens take a second or two, unless the context is so long that these are less than 8 for each.
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
    """Names for a message, which need not be strings."""
    few = [
        name if isinstance(name, str) and len(name) <= _MOST_NAME_CHARS else shown(name)
        for name in islice(names, _MOST_NAMES)
    ]
    return ", ".join(few) + (f", ... ({len(names)} in all)" if len(names) > _MOST_NAMES else "")


def check_fields_text(fields: Mapping[str, Any], index: int, limit: int | None) -> None:
    """Refuse an input that no tokenizer can read, or that cannot fit the context.

    Args:
        fields: the input's fields; a value of None is left to the template.
        index: the input's index, for the message.
        limit: how many characters it may have, all together; None sets no limit.

    Raises:
        FieldTypeError: a value is no string, or holds half of a surrogate pair.
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
            "character. Decode the text as what it is, or drop such halves."
        ) from None


def check_ids(
    ids: Iterable[int], table_size: int, tokenizer: PreTrainedTokenizerBase, where: str, end: int | None = None
) -> None:
    """Refuse token ids that the model has no row for.

    Args:
        ids: token ids, and ids of prompt rows.
        table_size: rows of the model's table of tokens.
        tokenizer: names the token.
        where: what the ids are of, for the message.
        end: ids from here on are prompt rows.

    Raises:
        TokenIdError: there is one.
    """
    for token_id in ids:
        if token_id >= table_size and (end is None or token_id < end):
            token = tokenizer.convert_ids_to_tokens(token_id)
            raise TokenIdError(
                f"{where} holds the token {shown(token)} with id {token_id}; the model's table has {table_size} rows. "
                "Call model.resize_token_embeddings(len(tokenizer)) before the model is served and train the new row, "
                "or do not use the token."
            )
