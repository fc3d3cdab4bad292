"""The loaded prompts of one model: their names, formats and rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.errors import (
    ExtraFieldError,
    MissingFieldError,
    NonFiniteRowsError,
    PromptMismatchError,
    UnknownPromptError,
)
from ruprompt_fast.prompts import KVShape, Prompt, PromptFormat, check_kv_shape

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(eq=False)
class LoadedPrompt:
    """A prompt ready to serve.

    Attributes:
        name: the name it was loaded under.
        prompt: the prompt.
        format: its format for serving; of a deep prompt that of the text behind it.
        rows: [num_rows, width] on the model's device, in its dtype.
        kv_shape: how the rows of a deep prompt hold its keys and values; None for embedding rows.
        retired: whether it was replaced or removed since; requests that were encoded before still use it.
    """

    name: str
    prompt: Prompt
    format: PromptFormat
    rows: Tensor
    kv_shape: KVShape | None = None
    retired: bool = False

    @property
    def is_deep(self) -> bool:
        """Whether the rows are keys and values of every layer."""
        return self.kv_shape is not None

    def encode(
        self, batch: Sequence[Mapping[str, str]], tokenizer: PreTrainedTokenizerBase, first_row_id: int
    ) -> list[tuple[list[int], int]]:
        """For every item its ids, ``first_row_id + k`` for row k, and how many of them are the same for all items.

        Args:
            batch: the fields of each item.
            tokenizer: the model's.
            first_row_id: the id of row 0.

        Raises:
            MissingFieldError, FieldTypeError: a field has no value, or one that is not a string.
        """
        encoded = self.format.encode_batch(batch, tokenizer, first_row_id=first_row_id)
        if not self.is_deep:
            return [(item.input_ids, item.prefix_len) for item in encoded]
        rows = range(first_row_id, first_row_id + len(self.rows))
        return [([*rows, *item.input_ids], len(rows)) for item in encoded]


class PromptRegistry(Mapping[str, Prompt]):
    """Prompts by name. Adding validates everything first, so a refused prompt leaves nothing behind.

    Args:
        width: width of a prompt row.
        model_config: the model's config. Its hub id refuses prompts of another model; a folder accepts any. Its sizes
            refuse deep prompts that are not for them.
        device: where rows are kept.
        dtype: the rows' dtype.
    """

    def __init__(self, width: int, model_config: PretrainedConfig, device: torch.device, dtype: torch.dtype) -> None:
        self._width = width
        self._model_config = model_config
        self._device = device
        self._dtype = dtype
        self._lock = threading.Lock()
        # Replaced whole, never changed: readers need no lock.
        self._loaded: dict[str, LoadedPrompt] = {}

    def add(self, name: str, prompt: Prompt) -> None:
        """Load a prompt, or replace the one of that name.

        Raises:
            PromptMismatchError: the prompt was made for another width or model.
            UnsupportedModelError: a deep prompt, and an encoder-decoder or a model whose layers differ.
            TemplateError: the rows of a deep prompt are not one run at the template's very start.
            NonFiniteRowsError: its rows contain NaN or infinity, also after conversion to the model's dtype.
            NotInitializedError: it has no rows yet.
        """
        rows = _rows_in_evaluation_mode(prompt)
        self._check(name, prompt, rows)
        converted = rows.to(device=self._device, dtype=self._dtype)
        if not bool(torch.isfinite(converted).all()):
            raise NonFiniteRowsError(
                f"prompt {name!r} has rows that are not finite in {self._dtype}; expected numbers only. "
                "Train it again, or load the model in a wider dtype."
            )
        entry = LoadedPrompt(name, prompt, _serving_format(prompt), converted, prompt.provider.kv_shape)
        with self._lock:
            replaced = self._loaded.get(name)
            self._loaded = {**self._loaded, name: entry}
            if replaced is not None:
                replaced.retired = True

    def remove(self, name: str) -> None:
        """Forget a prompt.

        Raises:
            UnknownPromptError: no prompt has that name.
        """
        with self._lock:
            removed = self.loaded(name)
            self._loaded = {key: value for key, value in self._loaded.items() if key != name}
            removed.retired = True

    def entries(self) -> list[LoadedPrompt]:
        """All that are loaded at this moment."""
        return list(self._loaded.values())

    def loaded(self, name: str) -> LoadedPrompt:
        """The entry of that name.

        Raises:
            UnknownPromptError: no prompt has that name; the message lists the loaded ones.
        """
        entry = self._loaded.get(name)
        if entry is None:
            names = ", ".join(sorted(self._loaded)) or "none"
            raise UnknownPromptError(f"unknown prompt {name!r}; loaded: {names}. Add it with model.add_prompt().")
        return entry

    def __getitem__(self, name: str) -> Prompt:
        return self.loaded(name).prompt

    def __contains__(self, name: object) -> bool:
        return name in self._loaded

    def __iter__(self) -> Iterator[str]:
        return iter(self._loaded)

    def __len__(self) -> int:
        return len(self._loaded)

    def _check(self, name: str, prompt: Prompt, rows: Tensor) -> None:
        if prompt.provider.kv_shape is not None:
            check_kv_shape(prompt.provider.kv_shape, self._model_config, f"prompt {name!r}")
        needed = [prompt.format.prompt_length, prompt.provider.row_width(self._width)]
        if list(rows.shape) != needed:
            raise PromptMismatchError(
                f"prompt {name!r} has rows {list(rows.shape)}; its template and this model's width {needed[1]} need "
                f"{needed}. It was made for {prompt.config.pretrained_model_name or 'another model or template'}."
            )
        ours, theirs = _hub_name(self._model_config.name_or_path), _hub_name(prompt.config.pretrained_model_name)
        if ours and theirs and ours != theirs:
            raise PromptMismatchError(
                f"prompt {name!r} was trained on {prompt.config.pretrained_model_name}; "
                f"this model is {self._model_config.name_or_path}. Load that model, or a prompt made for this one; if "
                "they are the same model, set prompt.config.pretrained_model_name = None."
            )


def check_fields(fields: Mapping[str, str], names: tuple[str, ...], prompt: str | None) -> None:
    """Refuse a request whose fields are not exactly those of the format.

    Raises:
        MissingFieldError: a field of the format is not given.
        ExtraFieldError: a field is given that the format does not have.
    """
    where = f"prompt {prompt!r}" if prompt is not None else "a request without a prompt"
    expected = ", ".join(dict.fromkeys(names)) or "no fields"
    missing = [name for name in dict.fromkeys(names) if name not in fields]
    if missing:
        raise MissingFieldError(f"{where} needs the field(s) {expected}; missing: {', '.join(missing)}.")
    extra = [name for name in fields if name not in names]
    if extra:
        raise ExtraFieldError(f"{where} has the field(s) {expected}; found also: {', '.join(extra)}. Remove them.")


def _rows_in_evaluation_mode(prompt: Prompt) -> Tensor:
    """The rows without the noise of a provider that trains, such as dropout; the provider's mode is kept."""
    was_training = prompt.provider.training
    prompt.provider.eval()
    try:
        return prompt.rows()
    finally:
        prompt.provider.train(was_training)


def _serving_format(prompt: Prompt) -> PromptFormat:
    """A format without fields is a prefix: the request's text follows it, as in ruPrompts' text-generation pipeline."""
    format = prompt.format.without_leading_rows() if prompt.provider.is_deep else prompt.format
    if format.fields:
        return format
    state = format.as_dict()
    return PromptFormat(state["template"] + "{text}", compiled_template=state["compiled_template"] + "{text}")


def _hub_name(name: str | None) -> str | None:
    """A hub id's last part (organizations get renamed), or None for folders and unnamed models."""
    if not name or os.path.isdir(name) or name.count("/") > 1 or name.startswith(("/", ".", "~")):
        return None
    return name.split("/")[-1].lower()
