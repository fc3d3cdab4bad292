"""Turns a call's arguments into requests and tasks. Everything is checked before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from ruprompt_fast.concurrency.threads import check_program
from ruprompt_fast.errors import SettingError, shown
from ruprompt_fast.requests.generation_task import GenerationTask, make_tasks
from ruprompt_fast.requests.inputs import Input, Inputs, PromptNames, Request, as_batch, encode_requests, parallel
from ruprompt_fast.requests.merging import SettingsMerger
from ruprompt_fast.requests.new_tokens import limits_of
from ruprompt_fast.requests.registry import PromptRegistry
from ruprompt_fast.requests.sampling_params import ExtraSettings
from ruprompt_fast.requests.text_checks import most_chars

if TYPE_CHECKING:
    from transformers import GenerationConfig, PretrainedConfig, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding

_EXTRAS = tuple(field.name for field in fields(ExtraSettings))


def split_extras(arguments: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Split a call's keywords into those of ``ExtraSettings``, in their order, and those of ``GenerationConfig``.

    Args:
        arguments: the keywords; a missing extra setting gets its default.
    """
    extras = [arguments.get(name, getattr(ExtraSettings, name)) for name in _EXTRAS]
    return extras, {name: value for name, value in arguments.items() if name not in _EXTRAS}


class CallReader:
    """Reads what callers of one model ask for.

    Args:
        registry: the loaded prompts.
        model_config: the model's sizes.
        tokenizer: the model's.
        embedding: says which ids are tokens and which are rows.
        settings: the model's own settings for generation.
        max_batch_size: maximum number of concurrent sequences.
    """

    def __init__(
        self,
        registry: PromptRegistry,
        model_config: PretrainedConfig,
        tokenizer: PreTrainedTokenizerBase,
        embedding: SplicedEmbedding,
        settings: GenerationConfig,
        max_batch_size: int,
    ) -> None:
        self._registry = registry
        self._model_config = model_config
        self._tokenizer = tokenizer
        self._embedding = embedding
        self._merger = SettingsMerger(settings, tokenizer, limits_of(model_config))
        self._max_batch_size = max_batch_size

    def requests(self, inputs: Inputs, prompt: PromptNames) -> list[Request]:
        """The encoded requests, in the order of the inputs: one for each, or one for each member of an ensemble.

        Raises:
            EmptyInputError, BatchMismatchError, UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError,
                ContextLengthError, TokenIdError: an input or a prompt's name is wrong.
            EngineStepError: the program is ending.
        """
        check_program()
        batch = as_batch(inputs)
        names: list[str | None] = parallel(prompt, len(batch), "prompt")
        return encode_requests(
            batch,
            names,
            self._registry,
            self._tokenizer,
            self._embedding.first_row_id,
            self._embedding.num_embeddings,
            most_chars(self._model_config),
        )

    def tasks(
        self,
        inputs: Inputs,
        prompt: PromptNames,
        generation_config: GenerationConfig | Sequence[GenerationConfig | None] | None,
        extras: Sequence[Any],
        keywords: Mapping[str, Any],
    ) -> list[GenerationTask]:
        """The requests with the settings of each; those of an ensemble's members ask for log-probabilities.

        Args:
            inputs: as in :meth:`requests`.
            prompt: as in :meth:`requests`.
            generation_config: one for all inputs or one for each; defaults to the model's own.
            extras: the settings of ``ExtraSettings``, in their order; each has one value for all inputs or a list with
                one for each.
            keywords: fields of ``GenerationConfig`` that override it.

        Raises:
            UnknownArgumentError, SettingError, CapacityError: a setting is wrong; and what :meth:`requests` raises.
        """
        requests = self.requests(inputs, prompt)
        size = requests[-1].index + 1
        given = parallel(generation_config, size, "generation_config")
        configs = self._merger.merged(given, keywords)
        is_compared = any(request.ensemble is not None for request in requests)
        scored = self._merger.merged(given, {**keywords, "output_scores": True}) if is_compared else configs
        read = self._merger.extras([parallel(value, size, name) for name, value in zip(_EXTRAS, extras, strict=True)])
        return make_tasks(
            requests,
            [(configs if request.ensemble is None else scored)[request.index] for request in requests],
            [read[request.index] for request in requests],
            self._model_config,
            self._max_batch_size,
        )

    def streamed_task(
        self,
        input: Input,
        prompt: str | None,
        generation_config: GenerationConfig | None,
        extras: Sequence[Any],
        keywords: Mapping[str, Any],
    ) -> GenerationTask:
        """The one task of a stream; the arguments are those of :meth:`tasks`.

        Raises:
            SettingError: the prompt is an ensemble; and what :meth:`tasks` raises.
        """
        first, *others = self.tasks([input], prompt, generation_config, extras, keywords)
        if first.request.ensemble is not None:
            raise SettingError(
                f"a stream gives one text while it is generated, but the ensemble {shown(first.request.ensemble)} "
                f"chooses among the whole texts of its {1 + len(others)} members. Call generate(), or add the member "
                "that you want to stream under a name of its own with add_prompt()."
            )
        return first
