"""One frozen model that serves many soft prompts."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch

from ruprompt_fast.core import ClassificationOutput, GenerationOutput
from ruprompt_fast.embedding import SplicedEmbedding, attach_prompts, detach_prompts
from ruprompt_fast.engine.classify import classify
from ruprompt_fast.engine.padded import PaddedGenerator
from ruprompt_fast.engine.registry import PromptRegistry
from ruprompt_fast.engine.requests import Input, Request, as_batch, encode_requests, merged_config, parallel
from ruprompt_fast.engine.stopping import stop_ids
from ruprompt_fast.errors import AlreadyAttachedError, PromptInitError, SettingError, UnsupportedModelError
from ruprompt_fast.prompts import MultiPrompt, Prompt

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

PromptSource: TypeAlias = Prompt | str | os.PathLike[str]
"""A prompt, a folder that holds one, or the id of one on the Hugging Face Hub."""


class FastPromptModel:
    """A frozen language model and its prompts; every request of a batch may use another prompt.

    Use :meth:`from_pretrained`. Methods may be called from many threads.

    Args:
        model: a transformers model; it is put into evaluation mode and its input embedding is replaced by
            :class:`~ruprompt_fast.embedding.SplicedEmbedding`.
        tokenizer: the model's tokenizer; it is not changed.
        max_batch_size: requests that run together at most.

    Raises:
        AlreadyAttachedError: prompts are attached to the model already.
        UnsupportedModelError: the model has no table of token embeddings.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, max_batch_size: int = 64) -> None:
        if isinstance(model.get_input_embeddings(), SplicedEmbedding):
            raise AlreadyAttachedError(
                "prompts are attached to this model already; call detach() of the Prompt, MultiPrompt or "
                "FastPromptModel that holds it first."
            )
        if max_batch_size < 1:
            raise SettingError(f"max_batch_size must be at least 1; found {max_batch_size}.")
        self.model = model
        self.tokenizer = tokenizer
        model.eval()
        self._embedding = attach_prompts(model, [], len(tokenizer))
        weight = self._embedding.weight
        self._registry = PromptRegistry(
            self._embedding.row_width, model.config.name_or_path, weight.device, weight.dtype
        )
        self._runner = PaddedGenerator(model, tokenizer, self._embedding, max_batch_size)

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel | str | os.PathLike[str],
        prompts: Mapping[str, PromptSource] | MultiPrompt | None = None,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        max_batch_size: int = 64,
    ) -> FastPromptModel:
        """Load a model and its prompts.

        Args:
            model: a transformers model, a folder, or a hub id.
            prompts: prompts by name.
            tokenizer: a tokenizer, a folder, or a hub id; None takes the model's.
            dtype: the weights' dtype; None takes the file's on a GPU and float32 on a CPU. A model given as an object
                keeps its own unless this is set.
            device: None takes the GPU if there is one; a model given as an object stays where it is.
            max_batch_size: requests that run together at most.

        Raises:
            UnsupportedModelError: a model object without ``name_or_path`` and no tokenizer, or no token table.
            PromptFileError, HubError, PromptMismatchError, NonFiniteRowsError: a prompt cannot be loaded. Nothing is
                changed in a model object then.
        """
        sources = prompts.prompts if isinstance(prompts, MultiPrompt) else prompts or {}
        loaded = {name: _load_prompt(source) for name, source in sources.items()}
        is_object = not isinstance(model, (str, os.PathLike))
        network: Any = model if is_object else _load_model(model, dtype, device)
        was_training = network.training
        served = cls(network, _load_tokenizer(model, tokenizer), max_batch_size=max_batch_size)
        try:
            for name, prompt in loaded.items():
                served.add_prompt(name, prompt)
        except Exception:
            served.detach().train(was_training)
            raise
        if is_object and (dtype is not None or device is not None):
            network.to(device=device, dtype=_dtype(dtype))
        return served

    @property
    def prompts(self) -> Mapping[str, Prompt]:
        """The loaded prompts by name; a read-only view."""
        return MappingProxyType(self._registry)

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._embedding.weight.device

    def add_prompt(self, name: str, prompt: PromptSource) -> None:
        """Load a prompt under a name; one that has the name is replaced.

        Raises:
            PromptFileError, HubError: it cannot be read.
            PromptMismatchError: it was made for another width or model.
            NonFiniteRowsError: its rows are not finite.
        """
        self._registry.add(name, _load_prompt(prompt))

    def remove_prompt(self, name: str) -> None:
        """Forget a prompt.

        Raises:
            UnknownPromptError: no prompt has that name.
        """
        self._registry.remove(name)

    def generate(
        self,
        inputs: Input | Sequence[Input],
        prompt: str | Sequence[str | None] | None = None,
        generation_config: GenerationConfig | Sequence[GenerationConfig | None] | None = None,
        **generation_kwargs: Any,
    ) -> list[GenerationOutput]:
        """Continue every input behind its prompt.

        Args:
            inputs: a string (the field ``text``), a dict of the prompt's fields, or a list of either.
            prompt: a loaded prompt's name for all inputs, or a list with one name (or None) per input.
            generation_config: transformers' settings for all inputs, or a list with one per input; None takes the
                model's own.
            **generation_kwargs: fields of ``GenerationConfig`` that override it for all inputs.

        Returns:
            One output per input, in order; with ``num_return_sequences=n``, n neighbouring outputs per input.

        Raises:
            EmptyBatchError, BatchMismatchError, UnknownArgumentError: the call's arguments are wrong.
            UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError, EmptyInputError,
                ContextLengthError: a request is wrong. Nothing is generated for the others then.
            SettingError: a setting has a value that cannot work, or is one of those that are not supported.
            DetachedModelError: the model has lost its prompts.
        """
        requests = self._encode(inputs, prompt)
        configs: list[GenerationConfig | None] = parallel(generation_config, len(requests), "generation_config")
        merged = {
            id(config): merged_config(config, self.model.generation_config, generation_kwargs) for config in configs
        }
        for key, config in merged.items():
            if "eos_token_id" in generation_kwargs:
                config.eos_token_id = generation_kwargs["eos_token_id"]
            elif key == id(None) or config.eos_token_id == self.model.generation_config.eos_token_id:
                config.eos_token_id = stop_ids(config, self.tokenizer)
        return self._runner.generate(requests, [merged[id(config)] for config in configs])

    def classify(
        self,
        inputs: Input | Sequence[Input],
        prompt: str | Sequence[str | None] | None = None,
        *,
        labels: Sequence[str],
    ) -> list[ClassificationOutput]:
        """Choose among label words by their log-probability behind every input.

        Args:
            inputs: as in :meth:`generate`.
            prompt: as in :meth:`generate`.
            labels: the label words as they stand behind the input, with a leading space where the text needs one.

        Raises:
            LabelError: the labels are too few or cannot be told apart; and what :meth:`generate` raises.
        """
        requests = self._encode(inputs, prompt)
        return classify(requests, labels, self._runner, self.tokenizer, self.model.config)

    def detach(self) -> PreTrainedModel:
        """Give the model back with its own input embedding; this object cannot be used afterwards."""
        if self.model.get_input_embeddings() is self._embedding:
            detach_prompts(self.model)
        return self.model

    def _encode(self, inputs: Input | Sequence[Input], prompt: str | Sequence[str | None] | None) -> list[Request]:
        batch = as_batch(inputs)
        names: list[str | None] = parallel(prompt, len(batch), "prompt")
        first_row_id = self._embedding.first_prompt_id + 1
        return encode_requests(batch, names, self._registry, self.tokenizer, first_row_id)


def _load_prompt(source: PromptSource) -> Prompt:
    if isinstance(source, Prompt):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise PromptInitError(f"expected a Prompt, a folder or a hub id; found {type(source).__name__}.")
    return Prompt.from_pretrained(source)


def _load_model(
    model: Any,
    dtype: torch.dtype | str | None,
    device: torch.device | str | None,
) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

    target = torch.device(device) if device is not None else _default_device()
    if dtype is None:
        # float16 arithmetic on a CPU is many times slower than float32.
        dtype = torch.float32 if target.type == "cpu" else "auto"
    config = AutoConfig.from_pretrained(model)
    factory = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    network: Any = factory.from_pretrained(model, dtype=dtype)
    return cast("PreTrainedModel", network.to(target).requires_grad_(False))


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by object or name; a model object's own for ``auto``."""
    if not isinstance(dtype, str) or dtype == "auto":
        return None if isinstance(dtype, str) else dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise SettingError(f"unknown dtype {dtype!r}; expected a name such as 'float32' or 'bfloat16'.")
    return found


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _load_tokenizer(
    model: PreTrainedModel | str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None,
) -> PreTrainedTokenizerBase:
    if tokenizer is not None and not isinstance(tokenizer, (str, os.PathLike)):
        return tokenizer
    source = tokenizer or (model if isinstance(model, (str, os.PathLike)) else model.config.name_or_path)
    if not source:
        raise UnsupportedModelError("this model object does not say where it comes from; give its tokenizer too.")
    from transformers import AutoTokenizer

    loaded: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source)
    return loaded
