"""The loaded prompts and ensembles of one model: their names, formats and virtual tokens."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.errors import (
    FieldTypeError,
    NonFiniteRowsError,
    PromptMismatchError,
    UnknownPromptError,
    shown,
)
from ruprompt_fast.integration.watch import Watch
from ruprompt_fast.prompts import KVShape, Prompt, PromptEnsemble, PromptFormat, check_kv_shape
from ruprompt_fast.prompts.format.special_tokens import Reading
from ruprompt_fast.prompts.format.tokenizer_state import tokenizer_state
from ruprompt_fast.requests.text_checks import check_ids, listed

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(eq=False)
class LoadedPrompt:
    """A prompt ready to serve.

    Attributes:
        name: the name that it was loaded under; ``name/k`` for a member of an ensemble.
        prompt: the prompt.
        format: its format for serving; for a deep prompt, the format of the text after it.
        rows: the virtual tokens, [num_rows, width], on the model's device, in its dtype.
        watch: tells whether the provider that made the rows has changed.
        kv_shape: how the rows of a deep prompt hold keys and values; None for embedding rows.
        is_continued: whether the model is a decoder, which continues the prompt's text, not an encoder-decoder.
        ensemble: the name of the ensemble that it answers for; None if it answers for itself.
        retired: whether it was replaced or removed; requests encoded before that still use it.
    """

    name: str
    prompt: Prompt
    format: PromptFormat
    rows: Tensor
    watch: Watch
    kv_shape: KVShape | None = None
    is_continued: bool = False
    ensemble: str | None = None
    retired: bool = False

    @property
    def is_deep(self) -> bool:
        """Whether the rows are keys and values of every layer."""
        return self.kv_shape is not None

    @property
    def encoding_key(self) -> Hashable:
        """Equal for prompts that encode the same fields as the same ids, such as the members of an ensemble."""
        return self.format.compiled_template, self.format.prompt_token, len(self.rows) if self.is_deep else None

    def encode(
        self,
        batch: Sequence[Mapping[str, str]],
        tokenizer: PreTrainedTokenizerBase,
        first_row_id: int,
        table_size: int | None = None,
        places: Sequence[str] | None = None,
    ) -> list[tuple[list[int], int]]:
        """The ids of every item, ``first_row_id + k`` for virtual token k, and how many of them all items share.

        Args:
            batch: the fields of each item.
            tokenizer: the model's.
            first_row_id: the id of row 0.
            table_size: rows of the model's token table; defaults to all ids below the virtual tokens'.
            places: what messages call each item; None names the prompt.

        Raises:
            MissingFieldError, FieldTypeError: a field has no value, or one that is not a string.
            TokenIdError: an item holds a token that the model has no row for.
        """
        table_size = first_row_id - 1 if table_size is None else table_size
        places = [f"prompt {shown(self.name)}"] * len(batch) if places is None else places
        reading = Reading(is_continued=self.is_continued)
        encoded = encode_with_rows(self.format, batch, tokenizer, first_row_id, table_size, places, reading)
        if not self.is_deep:
            return encoded
        rows = range(first_row_id, first_row_id + len(self.rows))
        return [([*rows, *input_ids], len(rows)) for input_ids, _ in encoded]

    def check_literals(self, tokenizer: PreTrainedTokenizerBase, first_row_id: int, table_size: int) -> None:
        """Refuse a template whose own text the model cannot read.

        Raises:
            TokenIdError: it holds a token that the model has no row for.
        """
        where = f"the template of prompt {shown(self.name)}"
        self.encode([dict.fromkeys(self.format.fields, "")], tokenizer, first_row_id, table_size, [where])


def encode_with_rows(
    format: PromptFormat,
    batch: Sequence[Mapping[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    first_row_id: int,
    table_size: int,
    places: Sequence[str],
    reading: Reading,
) -> list[tuple[list[int], int]]:
    """The ids of every item, ``first_row_id + k`` for virtual token k, and the length of the format's static prefix.

    Args:
        format: the format.
        batch: the fields of each item.
        tokenizer: the model's. Tokens may have been added to it since the model was loaded.
        first_row_id: the id of row 0.
        table_size: rows of the model's token table.
        places: what messages call each item.
        reading: how the text is read.

    Raises:
        MissingFieldError, FieldTypeError: a field has no value, or one that is not a string.
        TokenIdError: an item holds a token that the model has no row for.
    """
    num_tokens = tokenizer_state(tokenizer).first_free_id
    start = max(first_row_id, num_tokens)  # tokens that were added have the virtual tokens' ids
    encoded = format.encode_batch(batch, tokenizer, start, **reading._asdict())
    if num_tokens > table_size:
        for item, place in zip(encoded, places, strict=True):
            check_ids(item.input_ids, table_size, tokenizer, place, end=start)
    if start == first_row_id:
        return [(item.input_ids, item.prefix_len) for item in encoded]
    back = start - first_row_id
    return [([id - back if id >= start else id for id in item.input_ids], item.prefix_len) for item in encoded]


@dataclass(frozen=True)
class _Loaded:
    """A named prompt or ensemble, and its prompts ready to serve."""

    source: Prompt | PromptEnsemble
    members: tuple[LoadedPrompt, ...]


class PromptRegistry(Mapping[str, Prompt | PromptEnsemble]):
    """Prompts and ensembles by name. Adding validates everything first: a refused prompt changes nothing.

    Args:
        width: the model's embedding width.
        model_config: the model's config; deep prompts must fit its sizes.
        weight: gives the model's token table: rows are kept where it is, in its dtype.
        check: refuses a prompt for the caller's own reasons.
    """

    def __init__(
        self,
        width: int,
        model_config: PretrainedConfig,
        weight: Callable[[], Tensor],
        check: Callable[[LoadedPrompt], None] = lambda entry: None,
    ) -> None:
        self._width = width
        self._model_config = model_config
        self._weight = weight
        self._check_entry = check
        self._lock = threading.RLock()  # a signal handler may load a prompt, too
        # Replaced whole, never changed: readers need no lock.
        self._loaded: dict[str, _Loaded] = {}

    @property
    def is_continued(self) -> bool:
        """Whether the model is a decoder, which continues the texts that it reads."""
        return not self._model_config.is_encoder_decoder

    def add(self, name: str, prompt: Prompt | PromptEnsemble) -> None:
        """Load a prompt or an ensemble, or replace what has that name.

        Raises:
            PromptMismatchError: a prompt was made for another width or model.
            UnsupportedModelError: a deep prompt for an encoder-decoder, or for a model whose layers differ.
            TemplateError: the virtual tokens of a deep prompt are not one run at the template's start.
            NonFiniteRowsError: its rows contain NaN or infinity, also after conversion to the model's dtype.
            NotInitializedError: it has no virtual tokens yet.
            FieldTypeError: the name is no string.
        """
        if not isinstance(name, str):
            raise FieldTypeError(f"a prompt's name must be a string; found {shown(name)}.")
        if isinstance(prompt, PromptEnsemble):
            members = [self._made(f"{name}/{index}", member, name) for index, member in enumerate(prompt.members)]
        else:
            members = [self._made(name, prompt, None)]
        with self._lock:
            replaced = self._loaded.get(name)
            self._loaded = {**self._loaded, name: _Loaded(prompt, tuple(members))}
            _retire(replaced)

    def remove(self, name: str) -> None:
        """Forget a prompt.

        Raises:
            UnknownPromptError: no prompt has that name.
        """
        with self._lock:
            removed = self._entry(name)
            self._loaded = {key: value for key, value in self._loaded.items() if key != name}
            _retire(removed)

    def members(self, name: str) -> tuple[LoadedPrompt, ...]:
        """The prompt of that name, or the members of the ensemble of that name.

        They are made again if one of their providers has changed, or the model's device or dtype.

        Raises:
            UnknownPromptError: nothing has that name; the message lists the loaded ones.
            PromptMismatchError, NonFiniteRowsError: :meth:`add` would refuse the changed rows.
        """
        entry = self._entry(name)
        if any(member.watch.sees_change() or not self._is_as_weight(member.rows) for member in entry.members):
            with self._lock:
                if self._loaded.get(name) is entry:  # otherwise it was replaced or removed meanwhile
                    self.add(name, entry.source)
                entry = self._entry(name)
        return entry.members

    def _entry(self, name: str) -> _Loaded:
        entry = self._loaded.get(name) if isinstance(name, str) else None
        if entry is None:
            names = listed(sorted(self._loaded)) or "none"
            raise UnknownPromptError(f"unknown prompt {shown(name)}; loaded: {names}. Add it with model.add_prompt().")
        return entry

    def __getitem__(self, name: str) -> Prompt | PromptEnsemble:
        return self._entry(name).source

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def _is_as_weight(self, rows: Tensor) -> bool:
        weight = self._weight()
        return rows.device == weight.device and rows.dtype is weight.dtype

    def _made(self, name: str, prompt: Prompt, ensemble: str | None) -> LoadedPrompt:
        """The prompt, checked and ready to serve."""
        rows = _rows_in_evaluation_mode(prompt)
        self._check(name, prompt, rows)
        converted = rows.to(self._weight())
        if not bool(torch.isfinite(converted).all()):
            raise NonFiniteRowsError(
                f"prompt {shown(name)} has rows that are not finite in {converted.dtype}; expected numbers only. "
                "Train it again, or load the model in a wider dtype."
            )
        format, shape, watch = _serving_format(prompt), prompt.provider.kv_shape, Watch(prompt.provider)
        made = LoadedPrompt(name, prompt, format, converted, watch, shape, self.is_continued, ensemble)
        self._check_entry(made)
        return made

    def _check(self, name: str, prompt: Prompt, rows: Tensor) -> None:
        if prompt.provider.kv_shape is not None:
            check_kv_shape(prompt.provider.kv_shape, self._model_config, f"prompt {shown(name)}")
        needed = [prompt.format.prompt_length, prompt.provider.row_width(self._width)]
        if list(rows.shape) != needed:
            raise PromptMismatchError(
                f"prompt {shown(name)} has rows {list(rows.shape)}; its template and this model's width {needed[1]} "
                f"need {needed}. It was made for {prompt.config.pretrained_model_name or 'another model or template'}."
            )


def _retire(entry: _Loaded | None) -> None:
    for member in () if entry is None else entry.members:
        member.retired = True


def _rows_in_evaluation_mode(prompt: Prompt) -> Tensor:
    """The rows without training noise such as dropout; the provider's mode is kept."""
    was_training = prompt.provider.training
    prompt.provider.eval()
    try:
        return prompt.rows()
    finally:
        prompt.provider.train(was_training)


def _serving_format(prompt: Prompt) -> PromptFormat:
    format = prompt.format.without_leading_rows() if prompt.provider.is_deep else prompt.format
    return format.with_text()
