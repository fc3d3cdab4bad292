"""One frozen model that serves many soft prompts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from ruprompt_fast.backends import backend_for
from ruprompt_fast.core import ClassificationOutput, GenerationOutput
from ruprompt_fast.dispatch.classification import Classification, check_labels
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.dispatch.model_sources import (
    device_of,
    dtype_of,
    load_model,
    load_tokenizer,
    sources_of,
    unwrapped,
    weight_dtype_of,
)
from ruprompt_fast.dispatch.progress import progress_bar
from ruprompt_fast.dispatch.served_model import ServedModel
from ruprompt_fast.errors import UnsupportedModelError
from ruprompt_fast.prompts import MultiPrompt
from ruprompt_fast.prompts.ensemble import PromptSource, load_prompt
from ruprompt_fast.prompts.format.verbalizers import Labels
from ruprompt_fast.requests.calls import split_extras
from ruprompt_fast.requests.ensemble_answers import most_probable
from ruprompt_fast.requests.inputs import Input, Inputs, PromptNames

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.backends import Quantization

__all__ = ["FastPromptModel", "PromptSource"]


class FastPromptModel(ServedModel):
    """A frozen language model and its prompts; every request of a batch may use another prompt.

    Use :meth:`from_pretrained`. Methods may be called from many threads.

    The model's own settings for generation are copied when this object is made: changing ``model.generation_config``
    afterwards has no effect. What a call gets is never changed.

    Args:
        model: a transformers model; it is put into evaluation mode, its input embedding is replaced by
            :class:`~ruprompt_fast.embedding.SplicedEmbedding`, and where the engine runs it, its frozen linear layers
            by packed ones (:meth:`detach` undoes both). Of PEFT's wrapper of a model, the model in it is taken, with
            the adapters in its layers.
        tokenizer: the model's tokenizer; it is not changed.
        options: how much the engine may take.

    Raises:
        AlreadyAttachedError: prompts are attached to the model already.
        UnsupportedModelError: this is no model or tokenizer, or a wrapper with a soft prompt of PEFT's; or the model
            cannot generate, or has no table of token embeddings in memory.
        SettingError: ``options`` is something else.
    """

    @classmethod
    def from_pretrained(
        cls,
        model: PreTrainedModel | str | os.PathLike[str],
        prompts: Mapping[str, PromptSource] | MultiPrompt | None = None,
        tokenizer: PreTrainedTokenizerBase | str | os.PathLike[str] | None = None,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        *,
        quantization: Quantization | None = None,
        max_batch_size: int = 64,
        max_step_tokens: int = 512,
        kv_cache_bytes: int | None = None,
        gpu_memory_fraction: float = 0.9,
        prefix_cache_bytes: int | None = None,
        host_cache_bytes: int = 1 << 30,
        threads: int | None = None,
    ) -> FastPromptModel:
        """Load a model and its prompts.

        Args:
            model: a transformers model, or PEFT's wrapper of one with adapters in its layers, a folder, or a hub id.
            prompts: prompts and ensembles by name.
            tokenizer: a tokenizer, a folder, or a hub id; None takes the model's.
            dtype: the weights' dtype; None takes the file's on a GPU and float32 on a CPU. A model given as an object
                keeps its own unless this is set.
            device: None takes the GPU if there is one; a model given as an object stays where it is.
            quantization: ``"int8"`` keeps the weights of the frozen matrices as 8-bit integers (on a CPU in float32 or
                bfloat16 only); activations stay in ``dtype``.
            max_batch_size: maximum number of concurrent sequences.
            max_step_tokens: tokens of one step at most; longer inputs are computed in chunks between the others'.
            kv_cache_bytes: memory for keys and values; None takes what ``max_batch_size`` full contexts need, but at
                most a quarter of the free memory, or of a GPU's the share ``gpu_memory_fraction``.
            gpu_memory_fraction: on a GPU the most that ``kv_cache_bytes=None`` takes of the memory that the weights
                leave free.
            prefix_cache_bytes: of that, for the prefixes of prompts, all together; None sets no limit of its own. A
                request whose prefix alone is larger is refused.
            host_cache_bytes: host memory for prefixes that had to leave the pages.
            threads: how many threads of a CPU compute, always; None takes the caller's ``torch.get_num_threads()``, and
                fewer for as long as other programs take processors.

        Raises:
            SettingError: a size, dtype, quantization or device that cannot work.
            UnsupportedModelError: a model object without ``name_or_path`` and no tokenizer, one that cannot generate or
                has no token table, or something else than a model.
            HubError: the model or tokenizer cannot be read.
            MissingDependencyError: the installed torch or Triton does not run on the device.
            PromptFileError, HubError, PromptInitError, PromptMismatchError, NonFiniteRowsError, TokenIdError: a prompt
                cannot be loaded. Nothing is changed in a model object then.
        """
        options = EngineOptions(
            max_batch_size,
            max_step_tokens,
            kv_cache_bytes,
            gpu_memory_fraction,
            prefix_cache_bytes,
            host_cache_bytes,
            quantization=quantization,
            threads=threads,
        )
        weight_dtype, target = weight_dtype_of(dtype), device_of(device)
        sources = sources_of(prompts)
        loaded = {name: load_prompt(source) for name, source in sources.items()}
        is_object = not isinstance(model, (str, os.PathLike))
        network: Any = unwrapped(model) if is_object else load_model(model, weight_dtype, target)
        was_training = getattr(network, "training", False)
        served = cls(network, load_tokenizer(network if is_object else model, tokenizer), options=options)
        try:
            with suppress(UnsupportedModelError):  # the transformers fallback runs there
                backend_for(target or served.device, torch.float32)  # before anything is computed on the device
            for name, prompt in loaded.items():
                served.add_prompt(name, prompt)
            if is_object and (dtype is not None or device is not None):
                network.to(device=target, dtype=dtype_of(weight_dtype))
            served.stats()  # builds the engine: its cost belongs to loading, not to the first request
        except BaseException:  # an interrupt, too
            served.detach().train(was_training)
            raise
        return served

    def generate(
        self,
        inputs: Inputs,
        prompt: PromptNames = None,
        generation_config: GenerationConfig | Sequence[GenerationConfig | None] | None = None,
        *,
        seed: int | Sequence[int | None] | None = None,
        presence_penalty: float | Sequence[float] = 0.0,
        frequency_penalty: float | Sequence[float] = 0.0,
        logit_bias: Mapping[int, float] | Sequence[Mapping[int, float] | None] | None = None,
        include_stop_str_in_output: bool | Sequence[bool] = True,
        progress: bool | None = None,
        **generation_kwargs: Any,
    ) -> list[GenerationOutput]:
        """Continue every input after its prompt.

        Args:
            inputs: a string (the prompt's only field, or the field ``text``), a dict of the prompt's fields, or a
                list of either.
            prompt: the name of a loaded prompt or ensemble for all inputs, or a list with one name (or None) per
                input.
            generation_config: transformers' settings for all inputs, or a list with one per input; None takes the
                model's own.
            seed: of sampling, for all inputs or one per input. A request draws the same tokens for the same seed,
                whatever else runs; equal inputs with equal seeds get equal texts. None draws one from torch's
                generator.
            presence_penalty: taken from the logit of every token that was generated already (new tokens only).
            frequency_penalty: likewise, times the number of its occurrences.
            logit_bias: added to the logits of these token ids.
            include_stop_str_in_output: whether a text that one of ``stop_strings`` ends is given with that string, as
                transformers does; ``token_ids`` are the same either way.
            progress: whether to show a progress bar; None shows one for long batches on a terminal.
            **generation_kwargs: fields of ``GenerationConfig`` that override it for all inputs.

        Returns:
            One output per input, in order; with ``num_return_sequences=n``, n neighbouring outputs per input. Those of
            an ensemble are the best of what its members generate, the best first; ``prompt`` is then the member's name,
            ``name/k``, and ``logprobs`` are always there. :class:`~ruprompt_fast.PromptEnsemble` says what counts.

        Raises:
            EmptyInputError, BatchMismatchError, UnknownArgumentError: the call's arguments are wrong.
            UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError, EmptyInputError,
                ContextLengthError, CapacityError, TokenIdError: a request is wrong. Nothing is generated for the others
                then.
            SettingError: a setting has a value that cannot work, or is one of those that are not supported.
            DetachedModelError: the model has lost its prompts.
            EngineStepError: a step of the engine failed.
            ModelChangedError: the model was changed while the requests ran.
        """
        extras = (seed, presence_penalty, frequency_penalty, logit_bias, include_stop_str_in_output)
        tasks = self._calls.tasks(inputs, prompt, generation_config, extras, generation_kwargs)
        with progress_bar(len(tasks), progress) as report:
            return most_probable(tasks, self._dispatcher.generate(tasks, report))

    def stream(
        self,
        input: Input,
        prompt: str | None = None,
        generation_config: GenerationConfig | None = None,
        *,
        seed: int | None = None,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        include_stop_str_in_output: bool = True,
        **generation_kwargs: Any,
    ) -> Iterator[str]:
        """The continuation of one input, piece by piece; the pieces add up to :meth:`generate`'s text.

        No piece ends inside a letter. Closing the iterator cancels the request. Arguments and errors are those of
        :meth:`generate`; wrong ones are refused before the first piece is asked for.

        Raises:
            SettingError: several outputs, beams or an ensemble, which chooses among whole texts.
        """
        extras = (seed, presence_penalty, frequency_penalty, logit_bias, include_stop_str_in_output)
        return self._dispatcher.stream(
            self._calls.streamed_task(input, prompt, generation_config, extras, generation_kwargs)
        )

    async def agenerate(
        self,
        inputs: Inputs,
        prompt: PromptNames = None,
        generation_config: GenerationConfig | Sequence[GenerationConfig | None] | None = None,
        *,
        progress: bool | None = None,
        **kwargs: Any,
    ) -> list[GenerationOutput]:
        """:meth:`generate` for asyncio: steps run in a thread, so the event loop stays free.

        While :attr:`engine_thread` runs, cancelling the task cancels its requests; without it they run to their ends.
        """
        read = partial(self._calls.tasks, inputs, prompt, generation_config, *split_extras(kwargs))
        tasks = await asyncio.to_thread(read)
        with progress_bar(len(tasks), progress) as report:
            return most_probable(tasks, await self._dispatcher.agenerate(tasks, report))

    def astream(
        self,
        input: Input,
        prompt: str | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> AsyncGenerator[str, None]:
        """:meth:`stream` for asyncio: steps run in a thread, so the event loop stays free.

        While :attr:`engine_thread` runs, the text is written whether it is read or not, and no piece takes a thread to
        wait for it. Wrong arguments are refused when the first piece is asked for.
        """
        read = partial(self._calls.streamed_task, input, prompt, generation_config, *split_extras(kwargs))
        return self._dispatcher.astream(read)

    def classify(self, inputs: Inputs, prompt: PromptNames = None, *, labels: Labels) -> list[ClassificationOutput]:
        """Choose among label words by their log-probability after every input.

        A label word has the tokens that it has as a target that is trained after the input.

        Args:
            inputs: as in :meth:`generate`.
            prompt: as in :meth:`generate`.
            labels: the label words as they follow the input, with a leading space where the text needs one; or
                for every class its word, as a training task has them, or several words, whose probabilities add up.

        Returns:
            One output per input, in order; ``label`` is a class where labels are given for classes. An ensemble's is
            the one that most of its members choose.

        Raises:
            LabelError: the labels are no list and no mapping, too few or too many, too long, or cannot be told apart.
            ContextLengthError: an input and its longest label do not fit the model's context.
            TokenIdError: a label holds a token that the model has no row for; and what :meth:`generate` raises.
        """
        return self._classification(inputs, prompt, labels).run(self._dispatcher)

    def check_fits(self, inputs: Inputs, prompt: PromptNames = None, *, labels: Labels) -> None:
        """Check all that :meth:`classify` checks before it runs anything.

        Raises:
            LabelError, ContextLengthError, TokenIdError: see :meth:`classify`; and what :meth:`generate` raises.
        """
        self._classification(inputs, prompt, labels)

    def _classification(self, inputs: Inputs, prompt: PromptNames, labels: Labels) -> Classification:
        config = self.model.config
        known = min(self._embedding.num_embeddings, config.get_text_config().vocab_size)
        return Classification(self._calls.requests(inputs, prompt), check_labels(labels), self.tokenizer, config, known)

    def count_tokens(self, inputs: Inputs, prompt: PromptNames = None) -> list[int]:
        """How many positions of the context every input takes, prompt rows and special tokens included.

        Args:
            inputs: as in :meth:`generate`.
            prompt: as in :meth:`generate`.

        Raises:
            EmptyInputError, BatchMismatchError, UnknownPromptError, MissingFieldError, ExtraFieldError, FieldTypeError,
                ContextLengthError, TokenIdError: see :meth:`generate`.
        """
        requests = self._calls.requests(inputs, prompt)
        return [max(len(one.input_ids) for one in group) for _, group in groupby(requests, lambda one: one.index)]
