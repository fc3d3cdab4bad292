"""Turns a call's inputs into encoded requests, each with its prompt."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from ruprompt_fast.errors import (
    BatchMismatchError,
    EmptyInputError,
    FieldTypeError,
    UnknownPromptError,
    shown,
)
from ruprompt_fast.prompts import PromptFormat
from ruprompt_fast.prompts.format.special_tokens import Reading
from ruprompt_fast.prompts.format.texts import text_field
from ruprompt_fast.requests.registry import LoadedPrompt, PromptRegistry, encode_with_rows
from ruprompt_fast.requests.text_checks import check_field_names, check_fields_text, check_ids

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

PLAIN_TEXT = PromptFormat("{text}", compiled_template="{text}")
"""How a request without a prompt is read: markers in it are text like any other.

Special tokens in it are what the tokenizer reads: the text is the caller's whole input, often one that a chat template
wrote. After a prompt a text is data.
"""

Input: TypeAlias = str | Mapping[str, str]
"""A request's fields; a string is its prompt's only field, or the field ``text``."""

Inputs: TypeAlias = Input | Sequence[Input]
"""The inputs of one call."""

PromptNames: TypeAlias = str | Sequence[str | None] | None
"""Names of loaded prompts and ensembles: one for all inputs of a call, or a list with a name or None for each."""


@dataclass(frozen=True)
class Request:
    """An encoded input with the prompt that answers it.

    Attributes:
        input_ids: token ids, and ``first_row_id + k`` for the prompt's virtual token k.
        prompt: the prompt, or None.
        prefix_len: how many leading ids are the same for every request with the prompt.
        fields: the fields that it was encoded from.
        index: the position of the input in its call; the requests of an ensemble's members share it.
    """

    input_ids: list[int]
    prompt: LoadedPrompt | None
    prefix_len: int = 0
    fields: Mapping[str, str] = field(default_factory=dict)
    index: int = 0

    @property
    def prompt_name(self) -> str | None:
        """The name of its prompt."""
        return self.prompt.name if self.prompt is not None else None

    @property
    def ensemble(self) -> str | None:
        """The name of the ensemble that its prompt answers for, or None."""
        return self.prompt.ensemble if self.prompt is not None else None

    @property
    def prompt_rows(self) -> Tensor | None:
        """The virtual tokens of its prompt, [num_rows, width]."""
        return self.prompt.rows if self.prompt is not None else None

    def followed_by(self, token_ids: Sequence[int]) -> Request:
        """The request with more tokens at its end."""
        return replace(self, input_ids=[*self.input_ids, *token_ids]) if token_ids else self

    def without_last(self, count: int) -> Request:
        """The request without the last tokens."""
        return replace(self, input_ids=self.input_ids[: len(self.input_ids) - count]) if count else self


def as_batch(inputs: Any) -> list[Input]:
    """A list of inputs, from one or from many.

    Raises:
        EmptyInputError: there are none.
        FieldTypeError: an input is neither a string nor a dict of fields.
    """
    if isinstance(inputs, (str, Mapping)):
        return [inputs]
    try:
        items = None if isinstance(inputs, (bytes, bytearray)) else iter(inputs)
    except TypeError:  # a zero-dimensional array claims to be iterable, and is not
        items = None
    if items is None:
        raise FieldTypeError(f"inputs must be strings or dicts of fields; found {type(inputs).__name__}.")
    batch: list[Input] = []
    for index, item in enumerate(items):  # checked one by one: a generator may be endless
        if not isinstance(item, (str, Mapping)):
            raise FieldTypeError(f"input {index} must be a string or a dict of fields; found {type(item).__name__}.")
        batch.append(item)
    if not batch:
        raise EmptyInputError("the batch is empty; give at least one input.")
    return batch


def parallel(values: Any, size: int, name: str) -> list[Any]:
    """One value for every input, from a single value or a list.

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
    """Encode every input with the format of the prompt that answers it, or of each member of the ensemble.

    Args:
        inputs: strings or dicts of fields.
        prompts: for each input, the name of its prompt or ensemble, or None.
        registry: the prompts.
        tokenizer: the model's.
        first_row_id: the id of a prompt's first virtual token.
        table_size: rows of the model's token table; defaults to all ids below the virtual tokens'.
        most_chars: maximum number of characters of an input; None sets no limit.

    Returns:
        The requests in the order of the inputs, one for each, or one for each member of an ensemble.

    Raises:
        UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError: the request is wrong.
        ContextLengthError: an input has too many characters for any tokenizer to make it fit.
        TokenIdError: an input holds a token that the model has no row for.
        EmptyInputError: nothing is left to read: no text, no prompt and no beginning-of-text token.
    """
    table_size = first_row_id - 1 if table_size is None else table_size
    for name in prompts:
        if name is not None and not isinstance(name, str):
            raise UnknownPromptError(f"a prompt's name must be a string or None; found {shown(name)}.")
    # Each name is looked up once: a prompt may be replaced meanwhile.
    answering: dict[str | None, tuple[LoadedPrompt | None, ...]] = {
        name: (None,) if name is None else registry.members(name) for name in dict.fromkeys(prompts)
    }
    groups: dict[str | None, list[int]] = {}
    batch: list[dict[str, str]] = []
    for index, (item, name) in enumerate(zip(inputs, prompts, strict=True)):
        first = answering[name][0]
        known = PLAIN_TEXT.fields if first is None else first.format.fields
        fields = {text_field(known): item} if isinstance(item, str) else dict(item)
        batch.append(fields)
        check_field_names(fields, known, name)
        check_fields_text(fields, index, most_chars)
        groups.setdefault(name, []).append(index)
    encoded: list[list[Request]] = [[] for _ in batch]
    for name, indices in groups.items():
        group, places = [batch[index] for index in indices], [f"input {index}" for index in indices]
        items: dict[Hashable, list[tuple[list[int], int]]] = {}
        for prompt in answering[name]:
            key = None if prompt is None else prompt.encoding_key
            if prompt is None:
                reading = Reading(is_continued=registry.is_continued, reads_control_text=True)
                items[key] = encode_with_rows(PLAIN_TEXT, group, tokenizer, first_row_id, table_size, places, reading)
            elif key not in items:
                items[key] = prompt.encode(group, tokenizer, first_row_id, table_size, places)
            for index, (input_ids, prefix_len) in zip(indices, items[key], strict=True):
                encoded[index].append(Request(input_ids, prompt, prefix_len, batch[index], index))
    return [_not_empty(request, tokenizer, table_size) for of_input in encoded for request in of_input]


def _not_empty(request: Request, tokenizer: PreTrainedTokenizerBase, table_size: int) -> Request:
    """The request, with a beginning-of-text token where it has no position that gives logits.

    Virtual tokens give logits; the keys and values of a deep prompt do not.
    """
    is_deep = request.prompt is not None and request.prompt.is_deep
    if len(request.input_ids) > (request.prefix_len if is_deep else 0):
        return request
    if tokenizer.bos_token_id is None:
        raise EmptyInputError(
            f"input {request.index} is empty and has no prompt{' but a deep one' if is_deep else ''}; give it text or "
            f"a prompt{' of embedding rows' if is_deep else ''}, or use a tokenizer with a beginning-of-text token."
        )
    where = f"the beginning of input {request.index}, which is empty,"
    check_ids([tokenizer.bos_token_id], table_size, tokenizer, where)
    return request.followed_by([tokenizer.bos_token_id])
