"""The transformers fallback: transformers' own ``generate`` on a padded batch of requests with mixed prompts."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from ruprompt_fast.concurrency.apart import Apart
from ruprompt_fast.concurrency.fair_lock import FairLock
from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.errors import RupromptError
from ruprompt_fast.fallback.call_context import (
    WideLogits,
    check_attached,
    generate_error,
    reads_input_ids,
    with_settings,
)
from ruprompt_fast.fallback.fallback_settings import check_decoder_start, check_tasks, settings_of
from ruprompt_fast.fallback.padded_batch import Togetherness, assemble, request_batches, task_batches
from ruprompt_fast.fallback.padded_output import make_output, token_logprobs
from ruprompt_fast.fallback.padding_check import first_logits_settings, togetherness
from ruprompt_fast.fallback.request_noise import RequestNoise
from ruprompt_fast.fallback.token_stream import BetweenTokens, TokenSender
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.generation_task import GenerationTask
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.stop_cut import StopCut
from ruprompt_fast.requests.stopping import StopStrings
from ruprompt_fast.requests.text_stream import TextStream

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.generation.streamers import BaseStreamer

    from ruprompt_fast.embedding import SplicedEmbedding

_MAX_CALLS_AT_ONCE = 4
"""Maximum number of batches that take turns here; each has its own KV cache, so memory grows with their number."""


class PaddedGenerator:
    """Runs padded batches through ``model.generate``, each request with the virtual tokens of its own prompt.

    A batch has its own table: row 0 is padding, then come the virtual tokens of the prompts that it uses. What a
    request generates (greedy, float32) does not depend on its neighbours. A model for which padding changes the numbers
    gets inputs of one length together; one whose numbers depend on the whole batch gets a single request at a time. A
    check before the first batch tells which kind the model is.

    Every call runs on its own thread, which no signal reaches, and lets other threads use the model between two tokens.

    Args:
        model: the frozen model, with ``embedding`` attached.
        tokenizer: its tokenizer.
        embedding: the model's input embedding.
        max_batch_size: maximum number of sequences of a batch.
        engine_lock: held while the model is used.
        guard: returns a function that raises once the model has changed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        embedding: SplicedEmbedding,
        max_batch_size: int,
        engine_lock: FairLock,
        guard: Callable[[], Callable[[], None]],
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer, embedding.first_prompt_id)
        self._embedding = embedding
        self._max_batch_size = max_batch_size
        self._known_togetherness: tuple[torch.dtype, Togetherness] | None = None
        self._engine_lock = engine_lock
        self._guard = guard
        self._slots = FairLock(_MAX_CALLS_AT_ONCE)
        self._decoder_start = model.generation_config.decoder_start_token_id
        self._takes = set(inspect.signature(model.forward).parameters)

    def generate(
        self, tasks: Sequence[GenerationTask], progress: Callable[[int], None] | None = None
    ) -> list[list[GenerationOutput]]:
        """Generate for every task with its own settings; ``num_return_sequences`` outputs each, in order.

        Args:
            tasks: requests and settings.
            progress: called with the number of finished tasks.

        Raises:
            SettingError: transformers cannot do what is asked.
            DetachedModelError: the model has lost its prompts.
            EngineStepError: the model failed.
        """
        check_tasks(self._model, tasks)
        seeds = [task.noise_seed() for task in tasks]

        def work(apart: Apart[tuple[int, list[GenerationOutput]]]) -> None:
            together = self._togetherness([task.request for task in tasks])
            for indices in task_batches(tasks, together, self._max_batch_size):
                batch = [tasks[index] for index in indices]
                outputs = self._run(batch, [seeds[index] for index in indices], apart)
                for index, output in zip(indices, outputs, strict=True):
                    apart.send((index, output))
                if apart.is_closed:
                    return

        results: list[list[GenerationOutput]] = [[] for _ in tasks]
        for num_done, (index, output) in enumerate(Apart(work).results(), start=1):
            results[index] = output
            if progress is not None:
                progress(num_done)
        return results

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits after each request and after each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.

        Raises:
            UnsupportedModelError: an encoder-decoder that does not say what its decoder starts with.
            DetachedModelError: the model has lost its prompts.
            EngineStepError: the model failed.
        """
        check_decoder_start(self._model, self._decoder_start)

        def work(apart: Apart[tuple[list[int], Tensor]]) -> None:
            for indices in request_batches(requests, self._togetherness(requests), self._max_batch_size):
                if apart.is_closed:
                    return
                with self._running():
                    logits = self._continue([requests[index] for index in indices], list(continuation))
                apart.send((indices, logits))

        by_index: dict[int, Tensor] = {}
        for indices, logits in Apart(work).results():
            by_index.update(zip(indices, logits, strict=True))
        return torch.stack([by_index[index] for index in range(len(requests))])

    def stream(self, task: GenerationTask, stop_strings: tuple[str, ...]) -> Iterator[str]:
        """The text of a task's one output, piece by piece; closing the iterator stops generating.

        Raises:
            SettingError: transformers cannot do what is asked; before the first piece is asked for.
        """
        check_tasks(self._model, [task])
        return self._pieces(task, stop_strings)

    def _pieces(self, task: GenerationTask, stop_strings: tuple[str, ...]) -> Iterator[str]:
        seed = task.noise_seed()

        def work(apart: Apart[int]) -> None:
            self._run([task], [seed], apart, TokenSender(apart))

        tokens = Apart(work).results()
        text = TextStream(self._decoder, self._read_before(task.request), stop_strings)
        cut = StopCut(task.resolved.cut_strings)
        failure: Exception | None = None
        try:
            for token in tokens:
                if not text.stopped and (piece := cut.push(text.push([token]))):
                    yield piece
        except Exception as error:
            failure = error
        if piece := cut.push(text.flush()) + cut.flush():
            yield piece
        if failure is not None:
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame

    def _continue(self, batch: Sequence[Request], continuation: list[int]) -> Tensor:
        if self._model.config.is_encoder_decoder:
            input_ids, mask, rows = self._assemble(batch)
            decoder_ids = torch.tensor([[self._decoder_start, *continuation]] * len(batch), device=input_ids.device)
            inputs: dict[str, Any] = {"decoder_input_ids": decoder_ids}
        else:
            input_ids, mask, rows = self._assemble([request.followed_by(continuation) for request in batch])
            inputs = {"position_ids": (mask.cumsum(-1) - 1).clamp(min=0)} if "position_ids" in self._takes else {}
        if "logits_to_keep" in self._takes:
            inputs["logits_to_keep"] = len(continuation) + 1
        with self._embedding.rows_for_call(rows):
            logits = self._model(input_ids=input_ids, attention_mask=mask, use_cache=False, **inputs).logits
        return cast(Tensor, logits[:, -(len(continuation) + 1) :].float())

    def _read_before(self, request: Request) -> list[int]:
        """The ids that a request's new tokens continue; none for an encoder-decoder, whose decoder begins a text."""
        return [] if self._model.config.is_encoder_decoder else request.input_ids

    def _assemble(self, batch: Sequence[Request]) -> tuple[Tensor, Tensor, Tensor]:
        return assemble(batch, self._embedding, pad_right=self._model.config.is_encoder_decoder)

    def _togetherness(self, requests: Sequence[Request]) -> Togetherness:
        """Which requests may share a batch; checked once, and again after the model was converted."""
        dtype = self._embedding.weight.dtype
        if len(requests) == 1:
            return "any"
        if self._known_togetherness is None or self._known_togetherness[0] != dtype:
            with self._running():
                self._known_togetherness = dtype, togetherness(self._model, self._first_logits)
        return self._known_togetherness[1]

    def _first_logits(self, batch: Sequence[Request]) -> Tensor:
        """Logits of the first steps, [batch, steps, vocabulary]; every new token is id 0."""
        input_ids, mask, rows = self._assemble(batch)
        settings = first_logits_settings(self._model)
        with self._embedding.rows_for_call(rows):
            model: Any = with_settings(self._model, settings, None)
            result = model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=settings,
                prefix_allowed_tokens_fn=lambda index, ids: [0],
            )
        return torch.stack(result.logits, 1)

    def _run(
        self,
        tasks: Sequence[GenerationTask],
        seeds: Sequence[int],
        apart: Apart[Any],
        streamer: BaseStreamer | None = None,
    ) -> list[list[GenerationOutput]]:
        """Run tasks that share their settings."""
        settings, strings = settings_of(tasks[0], self._model, self._tokenizer, self._embedding)
        stop = StopStrings(strings, self._decoder)
        batch = [task.request for task in tasks]
        with self._running():
            token_ids, logprobs = self._generate(batch, settings, seeds, stop, apart, streamer)
        count = len(token_ids) // len(batch)
        return [
            [
                make_output(
                    token_ids[k],
                    logprobs[k] if logprobs else None,
                    task.request.prompt_name,
                    settings,
                    stop,
                    partial(self._decoder.text, self._read_before(task.request)),
                    task.resolved.cut_strings,
                )
                for k in range(index * count, (index + 1) * count)
            ]
            for index, task in enumerate(tasks)
        ]

    def _generate(
        self,
        batch: Sequence[Request],
        settings: GenerationConfig,
        seeds: Sequence[int],
        stop: StopStrings,
        apart: Apart[Any],
        streamer: BaseStreamer | None,
    ) -> tuple[list[list[int]], list[list[float]] | None]:
        """The new tokens of every sequence, with padding, and their log-probabilities on request."""
        input_ids, mask, rows = self._assemble(batch)
        stop.continues_input = not self._model.config.is_encoder_decoder
        stop.new_start = input_ids.shape[1] if stop.continues_input else 1
        wide = WideLogits(self._embedding.first_prompt_id + rows.shape[0]) if reads_input_ids(settings) else None
        model: Any = with_settings(self._model, settings, wide)
        between = BetweenTokens(self._engine_lock, apart, self._guard())
        noise = RequestNoise(seeds, input_ids.device, wide) if settings.do_sample else nullcontext()
        with self._embedding.rows_for_call(rows), noise:
            result = model.generate(
                input_ids=input_ids,
                attention_mask=mask,
                generation_config=settings,
                stopping_criteria=[stop, between] if stop else [between],
                streamer=streamer,
            )
        token_ids = result.sequences[:, stop.new_start :].tolist()
        return token_ids, token_logprobs(result, token_ids) if settings.output_scores else None

    @contextmanager
    def _running(self) -> Iterator[None]:
        """Holds the engine lock, without gradients, on a model that still has its prompts.

        Raises:
            DetachedModelError: the model has lost its prompts.
            SettingError, EngineStepError: transformers raised an error.
        """
        with self._slots, self._engine_lock, torch.inference_mode():
            check_attached(self._model, self._embedding)
            try:
                yield
            except RupromptError:
                raise
            except Exception as error:
                raise generate_error(error) from error
