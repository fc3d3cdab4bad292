"""A model and the prompts that it serves: what requests run on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType, NoneType
from typing import TYPE_CHECKING, cast

import torch

from ruprompt_fast.dispatch.dispatcher import Dispatcher
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.dispatch.model_sources import check_served, unwrapped
from ruprompt_fast.embedding import SplicedEmbedding, attach_prompts
from ruprompt_fast.engine.engine_thread import EngineThread
from ruprompt_fast.engine.stats import ModelStats
from ruprompt_fast.errors import AlreadyAttachedError, UnknownPromptError, shown
from ruprompt_fast.prompts import Prompt, PromptEnsemble
from ruprompt_fast.prompts.ensemble import PromptSource, load_prompt
from ruprompt_fast.prompts.files.base_model import BaseModel, check_base
from ruprompt_fast.requests.calls import CallReader
from ruprompt_fast.requests.merging import own_settings
from ruprompt_fast.requests.registry import LoadedPrompt, PromptRegistry

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


class ServedModel:
    """A frozen model with its prompts loaded, and the state that its requests run on.

    Args:
        model: a transformers model; see :class:`~ruprompt_fast.model.FastPromptModel`.
        tokenizer: the model's tokenizer; it is not changed.
        options: how much the engine may take.

    Raises:
        AlreadyAttachedError, UnsupportedModelError, SettingError: see :class:`~ruprompt_fast.model.FastPromptModel`.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, options: EngineOptions | None = None
    ) -> None:
        options = EngineOptions() if options is None else options
        model = cast("PreTrainedModel", unwrapped(model))
        check_served(model, tokenizer, options)
        if isinstance(model.get_input_embeddings(), SplicedEmbedding):
            raise AlreadyAttachedError(
                "prompts are attached to this model already; call detach() of the Prompt, MultiPrompt or "
                "FastPromptModel that holds it first."
            )
        self.model = model
        self.tokenizer = tokenizer
        settings = own_settings(model)
        self._embedding = embedding = attach_prompts(model, [], len(tokenizer))
        model.eval()
        self._embedding.is_served = True
        check = partial(_check_prompt, tokenizer, self._embedding, model.config)
        self._registry = PromptRegistry(embedding.row_width, model.config, lambda: embedding.weight, check)
        self._calls = CallReader(
            self._registry, model.config, tokenizer, self._embedding, settings, options.max_batch_size
        )
        self._dispatcher = Dispatcher(model, tokenizer, self._embedding, options)

    @property
    def prompts(self) -> Mapping[str, Prompt | PromptEnsemble]:
        """The loaded prompts and ensembles by name; a read-only view."""
        return MappingProxyType(self._registry)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._embedding.weight.device

    @property
    def engine_thread(self) -> EngineThread:
        """The engine's thread for servers: ``async with model.engine_thread:`` around all that they serve.

        Within it :meth:`FastPromptModel.astream` and :meth:`FastPromptModel.agenerate` wait for no thread, in any
        number of event loops, and the engine runs for as long as it has work. What still runs at the block's end fails
        with :class:`~ruprompt_fast.errors.EngineStepError`. Requests that take transformers' own generate go on as
        without it.
        """
        return self._dispatcher.engine_thread

    def add_prompt(self, name: str, prompt: PromptSource) -> None:
        """Load a prompt or an ensemble under a name; what has the name is replaced.

        Raises:
            PromptInitError: it is neither a prompt, nor an ensemble, nor a folder or hub id.
            PromptFileError, HubError: it cannot be read.
            PromptMismatchError: it was made for another width or model.
            UnsupportedModelError: it is a deep prompt, and the model an encoder-decoder or one whose layers differ.
            TemplateError: it is a deep prompt whose rows are not one run at the very start.
            NonFiniteRowsError: its rows are not finite.
            FieldTypeError: the name is no string.
            TokenIdError: its template holds a token that the model has no row for.
        """
        self._registry.add(name, load_prompt(prompt))
        self._dispatcher.forget_retired()

    def remove_prompt(self, name: str) -> None:
        """Forget a prompt or an ensemble.

        Raises:
            UnknownPromptError: none has that name.
        """
        self._registry.remove(name)
        self._dispatcher.forget_retired()

    def warm_up(self, prompts: Sequence[str] | None = None) -> None:
        """Compute the prefixes of prompts now, so that their first requests need not wait.

        Args:
            prompts: names; None takes all. Those that the memory does not hold are computed when they are used.

        Raises:
            UnknownPromptError: no prompt has that name.
            CapacityError: a prefix is longer than the memory for prefixes.
            EngineStepError: a step that computes a prefix failed.
        """
        if isinstance(prompts, (str, bytes)) or not isinstance(prompts, (Iterable, NoneType)):
            raise UnknownPromptError(f"prompts must be a list of names, or None for all; found {shown(prompts)}.")
        names = list(self._registry) if prompts is None else prompts
        self._dispatcher.warm_up([prompt for name in names for prompt in self._registry.members(name)])

    def refresh(self) -> None:
        """Have everything computed again that was computed from the model's weights.

        Changes of weights, layers, adapters, hooks, modes and configs are noticed by every call; after those that leave
        no trace, call this: single numbers written through ``.data``, ``numpy()`` or memory that other processes share,
        and what hooks and replaced functions read elsewhere. Requests that run fail with
        :class:`~ruprompt_fast.errors.ModelChangedError`.

        Raises:
            DetachedModelError: the model has lost its prompts.
        """
        self._dispatcher.refresh()

    def stats(self) -> ModelStats:
        """How requests run, on the engine or on the transformers fallback and why, and the engine's counts."""
        return self._dispatcher.stats()

    def check_integrity(self) -> None:
        """Compare what the engine's parts hold; for tests and for the wary.

        Raises:
            IntegrityError: they disagree, or a page is lost.
        """
        self._dispatcher.check_integrity()

    def detach(self) -> PreTrainedModel:
        """Give the model back with its own input embedding and layers; this object cannot be used afterwards.

        What ``quantization="int8"`` has rounded stays rounded.
        """
        self._dispatcher.close()
        return self.model


def _check_prompt(
    tokenizer: PreTrainedTokenizerBase, embedding: SplicedEmbedding, config: PretrainedConfig, prompt: LoadedPrompt
) -> None:
    base = BaseModel.of(config, embedding.weight)
    check_base(prompt.prompt, base, config.name_or_path, f"prompt {shown(prompt.name)}")
    prompt.check_literals(tokenizer, embedding.first_row_id, embedding.num_embeddings)
