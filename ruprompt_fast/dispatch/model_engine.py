"""The engine of one model as it is now: made for it, and asked for whole batches, streams and logits."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast._C import Scheduler
from ruprompt_fast.backends import Backend, PreparedModel, backend_for
from ruprompt_fast.cache import PrefixCache, num_pages_of
from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.engine.batch import BatchBuilder
from ruprompt_fast.engine.engine import Engine
from ruprompt_fast.engine.jobs import BeamJob, Job, LogitsJob, SamplingJob
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.engine.prefixes import PromptPrefixes
from ruprompt_fast.errors import SettingError, UnsupportedModelError
from ruprompt_fast.integration import check_compatibility, context_length
from ruprompt_fast.integration.watch import Watch
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.requests.stopping import StopTexts, unused_ids
from ruprompt_fast.sampling.beam_search import BeamSearch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.prompts import KVShape
    from ruprompt_fast.requests.registry import LoadedPrompt

Progress = Callable[[int], None]
"""Is told how many requests are done."""

_UNBOUNDED_CONTEXT = 8192
# A quarter leaves room for the weights of a second model and for everybody else on the machine.
_FREE_MEMORY_SHARE = 0.25


@dataclass(frozen=True)
class NoEngine:
    """A model that the engine does not run.

    Attributes:
        reason: why not.
        watch: of the token table; nothing is kept of the rest.
    """

    reason: str
    watch: Watch

    def is_outdated(self, model: PreTrainedModel) -> bool:
        """Whether the model has changed since."""
        return self.watch.sees_change() or any(module.training for module in model.modules())


class ModelEngine:
    """An engine for a model as it was at one moment, with the model's layers prepared for it.

    Many threads may ask it for something, and their requests share steps.

    Args:
        engine: the engine.
        loop: runs the engine's steps, and whatever else changes it.
        prepared: the model's layers.
        watch: of all that the model computes from.
        decoder: makes text of what is generated.
        vocab_size: columns of the logits that are tokens.
        banned_ids: token ids that are never generated.
    """

    def __init__(
        self,
        engine: Engine,
        loop: StepLoop,
        prepared: PreparedModel,
        watch: Watch,
        decoder: TextDecoder,
        vocab_size: int,
        banned_ids: Sequence[int],
    ) -> None:
        self.engine = engine
        self.prepared = prepared
        self._loop = loop
        self._watch = watch
        self._decoder = decoder
        self._vocab_size = vocab_size
        self._banned_ids = banned_ids

    def is_outdated(self, model: PreTrainedModel | None = None) -> bool:
        """Whether anything that the model computes from has changed since."""
        return self._watch.sees_change() or self.prepared.is_outdated()

    def generate(
        self, requests: Sequence[Request], params: Sequence[SamplingParams], progress: Progress | None = None
    ) -> list[list[GenerationOutput]]:
        """The outputs of every request, in order.

        Raises:
            CapacityError: a request can never fit the memory for keys and values. Nothing is generated then.
            EngineStepError: a step failed.
        """
        jobs = [self._job(request, setting) for request, setting in zip(requests, params, strict=True)]
        self._run(jobs, progress)
        return [job.outputs() for job in jobs]

    def stream(self, request: Request, params: SamplingParams) -> Iterator[str]:
        """The text of a request's one output, piece by piece; closing the iterator cancels the request.

        Raises:
            CapacityError: as in :meth:`generate`, before the first piece is asked for.
            EngineStepError: while it is read.
        """
        pieces = self._pieces(SamplingJob(request, params, self._decoder, streaming=True))
        next(pieces)
        return pieces

    def _pieces(self, job: SamplingJob) -> Iterator[str]:
        """The pieces after an empty one: as soon as that is read, closing the iterator has an effect."""
        try:
            self._loop.call(lambda: self.engine.add([job]))
            yield ""
            while not job.done or job.pieces:
                self._loop.run_until(lambda: bool(job.pieces) or job.done)
                while job.pieces:
                    yield job.pieces.popleft()
            _raise_errors([job])
        finally:
            self.engine.cancel([job])

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits after each request and after each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.
        """
        lengths = range(len(continuation) + 1)
        jobs = [LogitsJob(request.followed_by(continuation[:length])) for request in requests for length in lengths]
        self._run(jobs, None)
        logits = torch.stack([job.logits for job in jobs if job.logits is not None])
        return logits.view(len(requests), len(lengths), -1)

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> None:
        """Compute the KV cache of the prompts' prefixes, as far as there is room.

        Raises:
            CapacityError: a prefix can never fit; the others are asked for all the same.
            EngineStepError: a step failed that computed one of them.
        """
        warm_up = self._loop.call(lambda: self.engine.warm_up(prompts))
        self._loop.run_until(lambda: warm_up.error is not None or not self.engine.is_warming)
        if warm_up.error is not None:
            raise warm_up.error

    def _job(self, request: Request, params: SamplingParams) -> SamplingJob | BeamJob:
        if params.num_beams == 1:
            return SamplingJob(request, params, self._decoder)
        stops = StopTexts(params.stop_strings)
        search = BeamSearch(
            params,
            request.input_ids,
            self._vocab_size,
            self._banned_ids,
            lambda ids: stops.found_in(self._decoder.text(request.input_ids, ids)),
        )
        return BeamJob(request, params, search, self._decoder)

    def _run(self, jobs: Sequence[Job], progress: Progress | None) -> None:
        waiting, num_done = list(jobs), 0

        def some_done() -> bool:
            """Whether there is something to report; runs on the engine's thread, the report on the caller's."""
            waiting[:] = [job for job in waiting if not job.done]
            is_over = not waiting or any(job.error is not None for job in jobs)
            return is_over or (progress is not None and len(jobs) - len(waiting) > num_done)

        try:
            self._loop.call(lambda: self.engine.add(jobs))
            while waiting and not any(job.error is not None for job in jobs):
                self._loop.run_until(some_done)
                num_done = len(jobs) - len(waiting)
                if progress is not None:
                    progress(num_done)
        finally:
            self.engine.cancel(jobs)
        _raise_errors(jobs)


def build_engine(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    loop: StepLoop,
    prepared: PreparedModel | None = None,
    *,
    thorough: bool = False,
) -> ModelEngine:
    """Check a model, set up an engine for it, and prepare its layers.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        embedding: its input embedding.
        options: what the engine may take.
        loop: runs the engine's steps.
        prepared: the model as the engine before this one has prepared it; what has not changed is kept.
        thorough: keep nothing that nobody can tell to be unchanged.

    Raises:
        UnsupportedModelError: the model cannot run on the engine; the message says why. It has its own layers then.
        SettingError: the memory does not hold one page for every layer.
        FrozenWeightsError: something has written to a weight whose memory was given back.
    """
    try:
        backend = backend_for(embedding.weight.device, embedding.weight.dtype)
        if any(parameter.is_meta for parameter in model.parameters()):
            raise UnsupportedModelError("weights of the model are offloaded, and brought in again at every call.")
        if prepared is not None:
            prepared = prepared.prepare_again(thorough=thorough)
        shapes = check_compatibility(model, embedding)
        banned_ids = unused_ids(model, tokenizer)
        engine = _engine(backend, model, tokenizer, embedding, options, shapes, banned_ids)
        if prepared is None:
            prepared = backend.prepare(model, options.quantization)
        vocab_size = model.config.get_text_config().vocab_size
        decoder, watch = TextDecoder(tokenizer, vocab_size), Watch(model, prepared.watched)
        return ModelEngine(engine, loop, prepared, watch, decoder, vocab_size, banned_ids)
    except BaseException:
        if prepared is not None:
            prepared.undo()
        raise


def _engine(
    backend: Backend,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    embedding: SplicedEmbedding,
    options: EngineOptions,
    shapes: Sequence[KVShape],
    banned_ids: Sequence[int],
) -> Engine:
    positions = context_length(model.config) or _UNBOUNDED_CONTEXT
    page_bytes = backend.page_bytes(shapes)
    num_pages = _num_pages(backend, page_bytes, positions, options)
    runner = backend.runner(model, embedding, shapes, num_pages, banned_ids)
    prefix_bytes = options.prefix_cache_bytes
    scheduler = Scheduler(
        num_pages=num_pages,
        page_size=backend.page_size,
        max_sequences=options.max_batch_size,
        max_model_len=positions + 1,  # the last token of a full context is never run
        max_prefix_pages=-1 if prefix_bytes is None else min(prefix_bytes // page_bytes, num_pages),
        max_step_tokens=options.max_step_tokens,
    )
    cache = PrefixCache(scheduler, runner.pages, host_budget_bytes=options.host_cache_bytes)
    # Pages never outlive their engine, nor an engine what it was made from: any name of its own is the model's.
    identity = secrets.token_bytes(32)
    prefixes = PromptPrefixes(cache, runner.pages, identity, embedding.weight.dtype, tokenizer, embedding.first_row_id)
    return Engine(scheduler, cache, prefixes, BatchBuilder(embedding), runner, options.max_step_tokens)


def _num_pages(backend: Backend, page_bytes: int, positions: int, options: EngineOptions) -> int:
    """Pages for keys and values.

    Raises:
        SettingError: there is not so much memory, or a page does not fit.
    """
    budget, available = options.kv_cache_bytes, backend.available_bytes()
    if budget is None:
        enough = options.max_batch_size * num_pages_of(positions, backend.page_size) * page_bytes
        budget = min(enough, int(available * _FREE_MEMORY_SHARE))
    elif budget > available:
        raise SettingError(f"kv_cache_bytes={budget} is more than the {available} bytes of memory that there are.")
    if budget < page_bytes:
        raise SettingError(
            f"kv_cache_bytes={budget}: that holds no page of keys and values; one page ({backend.page_size} tokens) "
            f"takes {page_bytes} bytes. Give a larger budget."
        )
    return budget // page_bytes


def _raise_errors(jobs: Sequence[Job]) -> None:
    error = next((job.error for job in jobs if job.error is not None), None)
    if error is not None:
        for job in jobs:
            job.error = None  # its traceback will hold the frames that hold the jobs
        try:
            raise error
        finally:
            del error
