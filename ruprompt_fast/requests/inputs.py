"""From a call's arguments to requests: what is generated, with which prompt and which settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ruprompt_fast.errors import (
    BatchMismatchError,
    EmptyBatchError,
    EmptyInputError,
    FieldTypeError,
    UnknownPromptError,
    shown,
)
from ruprompt_fast.prompts import PromptFormat
from ruprompt_fast.prompts.format.special_tokens import Reading
from ruprompt_fast.prompts.format.texts import text_field
from ruprompt_fast.requests.registry import LoadedPrompt, PromptRegistry, check_fields, encode_with_rows
from ruprompt_fast.requests.text_checks import check_fields_text, check_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PLAIN_TEXT = PromptFormat("{text}", compiled_template="{text}")
"""How a request without a prompt is read: markers in it are text like any other.

Special tokens in it are what the tokenizer reads: the text is the caller's whole input, often one that a chat template
wrote. Behind a prompt a text is data.
"""

Input: TypeAlias = str | Mapping[str, str]
"""A request's fields; a string is its prompt's only field, or the field ``text``."""


@dataclass(frozen=True)
class Request:
    """One request, encoded.

    Attributes:
        input_ids: token ids, and ``first_row_id + k`` for row k of the prompt.
        prompt: the prompt, or None.
        prefix_len: how many of the leading ids are the same for every request of the prompt.
        fields: the fields that it was encoded from.
    """

    input_ids: list[int]
    prompt: LoadedPrompt | None
    prefix_len: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)

    @property
    def prompt_name(self) -> str | None:
        """The name of its prompt."""
        return self.prompt.name if self.prompt is not None else None

    def followed_by(self, token_ids: Sequence[int]) -> Request:
        """The request with more tokens at its end."""
        return replace(self, input_ids=[*self.input_ids, *token_ids]) if token_ids else self

    def without_last(self, count: int) -> Request:
        """The request without the last tokens."""
        return replace(self, input_ids=self.input_ids[: len(self.input_ids) - count]) if count else self


def as_batch(inputs: Any) -> list[Input]:
    """A list of inputs, from one or from many.

    Raises:
        EmptyBatchError: there are none.
        FieldTypeError: an input is neither a string nor a dict of fields.
    """
    if isinstance(inputs, (str, Mapping)):
        return [inputs]
    try:
        items = None if isinstance(inputs, (bytes, bytearray)) else iter(inputs)
    except TypeError:  # an array without a dimension says that it is iterable, and is not
        items = None
    if items is None:
        raise FieldTypeError(f"inputs must be strings or dicts of fields; found {type(inputs).__name__}.")
    batch: list[Input] = []
    for index, item in enumerate(items):  # looked at one by one: a generator may have no end
        if not isinstance(item, (str, Mapping)):
            raise FieldTypeError(f"input {index} must be a string or a dict of fields; found {type(item).__name__}.")
        batch.append(item)
    if not batch:
        raise EmptyBatchError("the batch is empty; give at least one input.")
    return batch


def parallel(values: Any, size: int, name: str) -> list[Any]:
    """One value for every input, from one for all or a list.

    Raises:
        BatchMismatchError: the list has another length than the batch.
    """
    if not isinstance(values, (list, tuple)):
        return [values] * size
    if len(values) != size:
        raise BatchMismatchError(
            f"{name} has {len(values)} values for {size} inputs; give one value for all, or one for each input."
        )
    return list(values)


def encode_requests(
    inputs: Sequence[Input],
    prompts: Sequence[str | None],
    registry: PromptRegistry,
    tokenizer: PreTrainedTokenizerBase,
    first_row_id: int,
    table_size: int | None = None,
    most_chars: int | None = None,
) -> list[Request]:
    """Encode every input with its prompt's format.

    Args:
        inputs: strings or dicts of fields.
        prompts: the name of each one's prompt, or None.
        registry: the prompts.
        tokenizer: the model's.
        first_row_id: the id of a prompt's first row.
        table_size: rows of the model's table of tokens; None takes all ids below the rows'.
        most_chars: characters that an input may have; None sets no limit.

    Raises:
        UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError: the request is wrong; see their texts.
        ContextLengthError: an input has too many characters for any tokenizer to make it fit.
        TokenIdError: an input holds a token that the model has no row for.
        EmptyInputError: nothing is left to read: no text, no prompt and no beginning-of-text token.
    """
    table_size = first_row_id - 1 if table_size is None else table_size
    for name in prompts:
        if name is not None and not isinstance(name, str):
            raise UnknownPromptError(f"a prompt's name must be a string or None; found {shown(name)}.")
    # Each name is looked up once: a prompt may be replaced meanwhile.
    loaded = {name: None if name is None else registry.loaded(name) for name in dict.fromkeys(prompts)}
    groups: dict[str | None, list[int]] = {}
    batch: list[dict[str, str]] = []
    for index, (item, name) in enumerate(zip(inputs, prompts, strict=True)):
        entry = loaded[name]
        known = PLAIN_TEXT.fields if entry is None else entry.format.fields
        fields = {text_field(known): item} if isinstance(item, str) else dict(item)
        batch.append(fields)
        check_fields(fields, known, name)
        check_fields_text(fields, index, most_chars)
        groups.setdefault(name, []).append(index)
    encoded: list[Request] = [Request([], None)] * len(batch)
    for name, indices in groups.items():
        entry = loaded[name]
        group, places = [batch[index] for index in indices], [f"input {index}" for index in indices]
        if entry is None:
            reading = Reading(is_continued=registry.is_continued, reads_control_text=True)
            items = encode_with_rows(PLAIN_TEXT, group, tokenizer, first_row_id, table_size, places, reading)
        else:
            items = entry.encode(group, tokenizer, first_row_id, table_size, places)
        for index, (input_ids, prefix_len) in zip(indices, items, strict=True):
            encoded[index] = Request(input_ids, entry, prefix_len, batch[index])
    return [_not_empty(request, index, tokenizer, table_size) for index, request in enumerate(encoded)]


def _not_empty(request: Request, index: int, tokenizer: PreTrainedTokenizerBase, table_size: int) -> Request:
    """The request, started with a beginning-of-text token where nothing else can give logits.

    A row of the embedding can; a deep prompt is only looked at.
    """
    is_deep = request.prompt is not None and request.prompt.is_deep
    if len(request.input_ids) > (request.prefix_len if is_deep else 0):
        return request
    if tokenizer.bos_token_id is None:
        raise EmptyInputError(
            f"input {index} is empty and has no prompt{' but a deep one' if is_deep else ''}; give it text or a prompt"
            f"{' of embedding rows' if is_deep else ''}, or use a tokenizer with a beginning-of-text token."
        )
    check_ids([tokenizer.bos_token_id], table_size, tokenizer, f"the beginning of input {index}, which is empty,")
    return request.followed_by([tokenizer.bos_token_id])
