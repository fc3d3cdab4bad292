"""From a call's arguments to requests: what is generated, with which prompt and which settings."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ruprompt_fast.engine.registry import LoadedPrompt, PromptRegistry, check_fields
from ruprompt_fast.errors import (
    BatchMismatchError,
    EmptyBatchError,
    EmptyInputError,
    FieldTypeError,
    UnknownArgumentError,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

Input: TypeAlias = str | Mapping[str, str]
"""A request's fields; a string is the field ``text``."""


@dataclass(frozen=True)
class Request:
    """One request, encoded.

    Attributes:
        input_ids: token ids, and ``first_row_id + k`` for row k of the prompt.
        prompt: the prompt, or None.
    """

    input_ids: list[int]
    prompt: LoadedPrompt | None


def as_batch(inputs: Input | Sequence[Input]) -> list[Input]:
    """A list of inputs, from one or from many.

    Raises:
        EmptyBatchError: there are none.
        FieldTypeError: an input is neither a string nor a dict of fields.
    """
    batch = [inputs] if isinstance(inputs, (str, Mapping)) else list(inputs)
    if not batch:
        raise EmptyBatchError("the batch is empty; give at least one input.")
    for index, item in enumerate(batch):
        if not isinstance(item, (str, Mapping)):
            raise FieldTypeError(f"input {index} must be a string or a dict of fields; found {type(item).__name__}.")
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
) -> list[Request]:
    """Encode every input with its prompt's format.

    Raises:
        UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError: the request is wrong; see their texts.
        EmptyInputError: nothing is left to read: no text, no prompt and no beginning-of-text token.
    """
    requests = []
    for index, (item, name) in enumerate(zip(inputs, prompts, strict=True)):
        fields = {"text": item} if isinstance(item, str) else dict(item)
        entry = None if name is None else registry.loaded(name)
        check_fields(fields, ("text",) if entry is None else entry.format.fields, name)
        if entry is None:
            ids = _encode_text(fields["text"], tokenizer)
        else:
            ids = entry.format.encode(fields, tokenizer, first_row_id=first_row_id).input_ids
        if not ids:
            raise EmptyInputError(
                f"input {index} is empty and has no prompt; give it text or a prompt, "
                "or use a tokenizer with a beginning-of-text token."
            )
        requests.append(Request(ids, entry))
    return requests


def merged_config(
    config: GenerationConfig | None, defaults: GenerationConfig, arguments: Mapping[str, Any]
) -> GenerationConfig:
    """The settings of a request: the call's keywords over its config over the model's defaults.

    Raises:
        UnknownArgumentError: a keyword is not a field of ``GenerationConfig``.
    """
    from transformers import GenerationConfig

    merged = copy.deepcopy(config) if config is not None else GenerationConfig()
    known = set(vars(merged))
    for name in arguments:
        if name not in known or name.startswith("_"):
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ". Use the names of transformers' GenerationConfig."
            raise UnknownArgumentError(f"unknown generation argument {name!r}{hint}")
    merged.update(**arguments)
    merged.update(**defaults.to_dict(), defaults_only=True)
    return merged


def _encode_text(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    if not isinstance(text, str):
        raise FieldTypeError(f"the field text must be a string; found {type(text).__name__}.")
    ids: list[int] = tokenizer(text)["input_ids"]
    if not ids and tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    return ids
