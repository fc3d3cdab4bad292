"""From a call's arguments to requests: what is generated, with which prompt and which settings."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from ruprompt_fast.engine.registry import LoadedPrompt, PromptRegistry, check_fields
from ruprompt_fast.errors import (
    BatchMismatchError,
    EmptyBatchError,
    EmptyInputError,
    FieldTypeError,
    SettingError,
    UnknownArgumentError,
)
from ruprompt_fast.prompts import PromptFormat

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

# Settings that need another call of transformers' generate, code from the hub, or a place in GenerationOutput.
_UNSUPPORTED = (
    "assistant_early_exit",
    "constraints",
    "diversity_penalty",
    "dola_layers",
    "force_words_ids",
    "num_beam_groups",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "penalty_alpha",
    "token_healing",
)

PLAIN_TEXT = PromptFormat("{text}", compiled_template="{text}")
"""How a request without a prompt is read: markers in it are text like any other."""

Input: TypeAlias = str | Mapping[str, str]
"""A request's fields; a string is the field ``text``."""


@dataclass(frozen=True)
class Request:
    """One request, encoded.

    Attributes:
        input_ids: token ids, and ``first_row_id + k`` for row k of the prompt.
        prompt: the prompt, or None.
        prefix_len: how many of the leading ids are the same for every request of the prompt.
    """

    input_ids: list[int]
    prompt: LoadedPrompt | None
    prefix_len: int = 0

    @property
    def prompt_name(self) -> str | None:
        """The name of its prompt."""
        return self.prompt.name if self.prompt is not None else None

    def followed_by(self, token_ids: Sequence[int]) -> Request:
        """The request with more tokens at its end."""
        return Request([*self.input_ids, *token_ids], self.prompt, self.prefix_len) if token_ids else self


def as_batch(inputs: Input | Sequence[Input]) -> list[Input]:
    """A list of inputs, from one or from many.

    Raises:
        EmptyBatchError: there are none.
        FieldTypeError: an input is neither a string nor a dict of fields.
    """
    if not isinstance(inputs, (str, Mapping, Iterable)):
        raise FieldTypeError(f"inputs must be strings or dicts of fields; found {type(inputs).__name__}.")
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
    batch = [{"text": item} if isinstance(item, str) else dict(item) for item in inputs]
    # Each name is looked up once: a prompt may be replaced meanwhile.
    loaded = {name: None if name is None else registry.loaded(name) for name in dict.fromkeys(prompts)}
    groups: dict[str | None, list[int]] = {}
    for index, (fields, name) in enumerate(zip(batch, prompts, strict=True)):
        entry = loaded[name]
        check_fields(fields, PLAIN_TEXT.fields if entry is None else entry.format.fields, name)
        groups.setdefault(name, []).append(index)
    encoded: list[Request] = [Request([], None)] * len(batch)
    for name, indices in groups.items():
        entry = loaded[name]
        group = [batch[index] for index in indices]
        if entry is None:
            items = [(item.input_ids, 0) for item in PLAIN_TEXT.encode_batch(group, tokenizer, first_row_id)]
        else:
            items = entry.encode(group, tokenizer, first_row_id)
        for index, (input_ids, prefix_len) in zip(indices, items, strict=True):
            encoded[index] = Request(input_ids, entry, prefix_len)
    return [_not_empty(request, index, tokenizer) for index, request in enumerate(encoded)]


def _not_empty(request: Request, index: int, tokenizer: PreTrainedTokenizerBase) -> Request:
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
    return request.followed_by([tokenizer.bos_token_id])


def merged_config(
    config: GenerationConfig | None, defaults: GenerationConfig, arguments: Mapping[str, Any]
) -> GenerationConfig:
    """The settings of a request: the call's keywords over its config over the model's defaults.

    Raises:
        UnknownArgumentError: a keyword is not a field of ``GenerationConfig``.
        SettingError: ``config`` is something else, or asks for what the padded path cannot do.
    """
    from transformers import GenerationConfig

    if config is not None and not isinstance(config, GenerationConfig):
        raise SettingError(f"generation_config must be transformers' GenerationConfig; found {type(config).__name__}.")
    merged = copy.deepcopy(config) if config is not None else GenerationConfig()
    merged.return_dict_in_generate = True
    known = {name for name in vars(merged) if not name.startswith("_")}
    for name in arguments:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ". Use the names of transformers' GenerationConfig."
            raise UnknownArgumentError(f"unknown generation argument {name!r}{hint}")
    try:
        merged.update(**arguments)
    except ValueError as error:
        raise SettingError(f"a generation setting cannot work: {error}") from error
    merged.update(**defaults.to_dict(), defaults_only=True)
    for name in _UNSUPPORTED:
        value = getattr(merged, name, None)
        if value and not (name == "num_beam_groups" and value == 1):
            raise SettingError(f"the generation setting {name}={value!r} is not supported; leave it out.")
    return merged
