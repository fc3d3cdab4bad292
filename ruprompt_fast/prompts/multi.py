"""MultiPrompt: several prompts over one model, mixed in every batch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from ruprompt_fast.errors import (
    AlreadyAttachedError,
    DuplicatePromptError,
    NotInitializedError,
    UnknownPromptError,
    shown,
)
from ruprompt_fast.prompts import patching
from ruprompt_fast.prompts.ensemble import single_prompt
from ruprompt_fast.prompts.format.patched_input import tokenize_for_patched
from ruprompt_fast.prompts.format.prompt_format import PromptFormat
from ruprompt_fast.prompts.format.texts import add_text
from ruprompt_fast.prompts.prompt import Prompt
from ruprompt_fast.prompts.prompt_context import PromptContext
from ruprompt_fast.prompts.providers.base_provider import BasePromptProvider

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase


class MultiPrompt:
    """Prompts by key, attached to one model together.

    Every key gets a marker of its own, so the texts of different prompts can share a batch.

        >>> prompts = MultiPrompt({"joke": "konodyuk/prompt_rugpt3large_joke", "mine": "path/to/my_prompt"})
        >>> prompts.patch(model, tokenizer)
        >>> texts = [prompts("joke", "Заходят в бар"), prompts("mine", text="...")]
        >>> model.generate(**tokenizer(texts, padding=True, return_tensors="pt"))

    Args:
        prompts: prompts, folders that hold one, or ids on the Hugging Face Hub, by key.

    Attributes:
        prompts: the prompts by key.
        ctx: what they are in use with.
    """

    def __init__(self, prompts: Mapping[str, Prompt | str | os.PathLike[str]] | None = None) -> None:
        self.prompts: dict[str, Prompt] = {}
        self.ctx = PromptContext()
        for key, prompt in (prompts or {}).items():
            self.add_prompt(key, prompt)

    @property
    def is_initialized(self) -> bool:
        """Whether all prompts are initialized."""
        return all(prompt.is_initialized for prompt in self.prompts.values())

    @property
    def is_attached(self) -> bool:
        """Whether a model is patched with the prompts."""
        return self.ctx.is_attached

    @property
    def formats(self) -> dict[str, PromptFormat]:
        """The formats by key."""
        return {key: prompt.format for key, prompt in self.prompts.items()}

    @property
    def providers(self) -> dict[str, BasePromptProvider]:
        """The providers by key."""
        return {key: prompt.provider for key, prompt in self.prompts.items()}

    def add_prompt(self, key: str, prompt: Prompt | str | os.PathLike[str]) -> None:
        """Add a prompt; if a model is patched already, initialize the prompt and patch the model with it too.

        The prompt's marker gets the key, so a prompt can be added only once.

        Args:
            key: the name to call it by.
            prompt: the prompt, a folder that holds one, or its id on the Hugging Face Hub.

        Raises:
            AlreadyAttachedError: the prompt is attached to a model on its own.
            DuplicatePromptError: the key is in use, or the prompt has another key here.
            TemplateError: the key cannot be part of a marker.
            PromptMismatchError: the prompt was made for another width than the patched model's.
            PromptInitError: this is no prompt, or a model is patched, and the prompt is deep.
            PromptFileError, HubError: the prompt could not be loaded.
        """
        if key in self.prompts:
            raise DuplicatePromptError(f"there is a prompt with the key {shown(key)} already; choose another key.")
        prompt = single_prompt(prompt)
        for other, known in self.prompts.items():
            if known is prompt or known.format is prompt.format:
                raise DuplicatePromptError(
                    f"this prompt is here already as {shown(other)}; load it once more for {shown(key)}."
                )
        if prompt.is_attached:
            raise AlreadyAttachedError(
                f"the prompt for {shown(key)} is attached to a model and would get another marker; detach() it first."
            )
        old_key = getattr(prompt.format, "key", None)
        prompt.format.set_key(key)
        if self.is_attached:
            try:
                self._attach_one_more(prompt)
            except Exception:
                prompt.format.set_key(old_key)
                raise
        self.prompts[key] = prompt

    def patch(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Initialize the prompts and attach them: :meth:`initialize`, then :meth:`attach`.

        Raises:
            PromptInitError: a prompt is deep, which no embedding can hold.
        """
        patching.refuse_deep(self.prompts.values())
        self.initialize(model, tokenizer)
        self.attach(model, tokenizer)

    def initialize(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Initialize every prompt, see :meth:`Prompt.initialize`."""
        for prompt in self.prompts.values():
            prompt.initialize(model, tokenizer)
        self.ctx.model = model
        self.ctx.tokenizer = tokenizer
        self.ctx.is_initialized = True

    def attach(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Replace the model's input embedding and add the markers to the tokenizer.

        Raises:
            AlreadyAttachedError: a model is patched with these prompts already.
            NotInitializedError: some prompts are not initialized.
            PromptInitError: a prompt is deep, which no embedding can hold.
            PromptMismatchError: a prompt was made for another width.
        """
        if self.is_attached:
            raise AlreadyAttachedError("these prompts are attached already; call detach() first.")
        waiting = [key for key, prompt in self.prompts.items() if not prompt.is_initialized]
        if waiting:
            raise NotInitializedError(f"the prompts {waiting} must be initialized to be attached; patch() does both.")
        self.ctx.embedding = patching.attach(list(self.prompts.values()), model, tokenizer)
        self.ctx.model = model
        self.ctx.tokenizer = tokenizer
        self.ctx.is_attached = True

    def detach(self, model: PreTrainedModel | None = None) -> None:
        """Give a model its own embedding back, the same object; the markers stay in the tokenizer.

        Args:
            model: the model to restore, whatever it is patched with. Defaults to the one that these prompts are
                attached to, and leaves it alone if another prompt has been attached since.
        """
        if model is not None:
            patching.detach(model)
        elif self.ctx.model is not None and self.ctx.embedding is not None:
            patching.detach(self.ctx.model, self.ctx.embedding)
        self.ctx.embedding = None
        self.ctx.is_attached = False

    def __call__(self, key: str, text: str | None = None, **fields: Any) -> Any:
        """The text form of one prompt, see :meth:`Prompt.__call__`.

        Raises:
            UnknownPromptError: no prompt has the key; the message lists those that are there.
        """
        return self._named(key)(text, **fields)

    def tokenize(self, key: str, text: str | None = None, **fields: str) -> BatchEncoding:
        """What the patched model reads of one prompt, see :meth:`Prompt.tokenize`.

        Raises:
            UnknownPromptError: no prompt has the key; the message lists those that are there.
        """
        format = self._named(key).format
        add_text(fields, text, format.fields)
        return tokenize_for_patched(format, self.ctx, fields)

    def _named(self, key: str) -> Prompt:
        prompt = self.prompts.get(key)
        if prompt is None:
            raise UnknownPromptError(f"unknown prompt {shown(key)}; there are {shown(sorted(self.prompts))}.")
        return prompt

    def _attach_one_more(self, prompt: Prompt) -> None:
        model = cast("PreTrainedModel", self.ctx.model)
        tokenizer = cast("PreTrainedTokenizerBase", self.ctx.tokenizer)
        if not prompt.is_initialized:
            prompt.initialize(model, tokenizer)
        if self.ctx.embedding is None or model.get_input_embeddings() is not self.ctx.embedding:
            raise NotInitializedError("the model was patched with something else since; call patch() again.")
        attached = list(self.prompts.values())
        self.ctx.embedding = patching.attach_one_more(prompt, attached, self.ctx.embedding, model, tokenizer)
