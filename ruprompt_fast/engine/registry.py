"""The loaded prompts of one model: their names, formats and rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ruprompt_fast.errors import (
    ExtraFieldError,
    MissingFieldError,
    NonFiniteRowsError,
    PromptMismatchError,
    UnknownPromptError,
)
from ruprompt_fast.prompts import Prompt, PromptFormat


@dataclass(eq=False)
class LoadedPrompt:
    """A prompt ready to serve.

    Attributes:
        name: the name it was loaded under.
        prompt: the prompt.
        format: its format for serving.
        rows: [num_rows, width] on the model's device, in its dtype.
        retired: whether it was replaced or removed since; requests that were encoded before still use it.
    """

    name: str
    prompt: Prompt
    format: PromptFormat
    rows: Tensor
    retired: bool = False


class PromptRegistry(Mapping[str, Prompt]):
    """Prompts by name. Adding validates everything first, so a refused prompt leaves nothing behind.

    Args:
        width: width of a prompt row.
        model_name: the model's hub id, to refuse prompts of another model; None or a folder accepts any.
        device: where rows are kept.
        dtype: the rows' dtype.
    """

    def __init__(self, width: int, model_name: str | None, device: torch.device, dtype: torch.dtype) -> None:
        self._width = width
        self._model_name = model_name
        self._device = device
        self._dtype = dtype
        self._lock = threading.Lock()
        # Replaced whole, never changed: readers need no lock.
        self._loaded: dict[str, LoadedPrompt] = {}

    def add(self, name: str, prompt: Prompt) -> None:
        """Load a prompt, or replace the one of that name.

        Raises:
            PromptMismatchError: the prompt was made for another width or model.
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
        entry = LoadedPrompt(name, prompt, _serving_format(prompt.format), converted)
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
        needed = [prompt.format.prompt_length, self._width]
        if list(rows.shape) != needed:
            raise PromptMismatchError(
                f"prompt {name!r} has rows {list(rows.shape)}; its template and this model's width {self._width} need "
                f"{needed}. It was made for {prompt.config.pretrained_model_name or 'another model or template'}."
            )
        ours, theirs = _hub_name(self._model_name), _hub_name(prompt.config.pretrained_model_name)
        if ours and theirs and ours != theirs:
            raise PromptMismatchError(
                f"prompt {name!r} was trained on {prompt.config.pretrained_model_name}; "
                f"this model is {self._model_name}. Load that model, or a prompt made for this one; if they are the "
                "same model, set prompt.config.pretrained_model_name = None."
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


def _serving_format(format: PromptFormat) -> PromptFormat:
    """A format without fields is a prefix: the request's text follows it, as in ruPrompts' text-generation pipeline."""
    if format.fields:
        return format
    state = format.as_dict()
    return PromptFormat(state["template"] + "{text}", compiled_template=state["compiled_template"] + "{text}")


def _hub_name(name: str | None) -> str | None:
    """A hub id's last part (organizations get renamed), or None for folders and unnamed models."""
    if not name or os.path.isdir(name) or name.count("/") > 1 or name.startswith(("/", ".", "~")):
        return None
    return name.split("/")[-1].lower()
