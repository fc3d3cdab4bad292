"""The engine of one model as it is now: asked for whole batches, streams and logits, by threads and by coroutines."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.backends import PreparedModel
from ruprompt_fast.engine.engine import Engine
from ruprompt_fast.engine.engine_thread import EngineThread
from ruprompt_fast.engine.jobs import BeamJob, Job, LogitsJob, SamplingJob
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.integration.watch import Watch
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.requests.stopping import StopTexts
from ruprompt_fast.sampling.beam_search import BeamSearch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ruprompt_fast.requests.registry import LoadedPrompt

Progress = Callable[[int], None]
"""Is told how many requests are done."""


@dataclass(frozen=True)
class NoEngine:
    """A model that the engine does not run.

    Attributes:
        reason: why not.
        model: the model.
        watch: of the token table; nothing else of the model is looked at but whether it trains.
    """

    reason: str
    model: PreTrainedModel
    watch: Watch

    def is_outdated(self) -> bool:
        """Whether the model has changed since."""
        return self.watch.sees_change() or any(module.training for module in self.model.modules())


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

    def is_outdated(self) -> bool:
        """Whether anything that the model computes from has changed since."""
        return self.engine.is_closed or self._watch.sees_change() or self.prepared.is_outdated()

    def jobs(self, requests: Sequence[Request], params: Sequence[SamplingParams]) -> list[SamplingJob | BeamJob]:
        """The requests with their settings, as the engine runs them."""
        return [self._job(request, setting) for request, setting in zip(requests, params, strict=True)]

    def run(self, jobs: Sequence[Job], progress: Progress | None = None) -> None:
        """Run jobs to their ends.

        Raises:
            CapacityError: one can never fit the memory for keys and values. Nothing is run then.
            EngineStepError: a step failed.
        """
        batch = _Batch(jobs, progress)
        try:
            self._loop.call(lambda: self.engine.add(jobs))
            while not batch.is_over:
                self._loop.run_until(batch.has_news)
                batch.report()
        finally:
            self.engine.cancel(jobs)
        _raise_errors(jobs)

    async def arun(self, thread: EngineThread, jobs: Sequence[Job], progress: Progress | None = None) -> None:
        """:meth:`run` for a coroutine, whose cancellation cancels the jobs."""
        batch = _Batch(jobs, progress)
        call = thread.submit(self.engine, jobs, batch.has_news)
        try:
            while not batch.is_over:
                await call.news()
                batch.report()
        finally:
            call.close()
        _raise_errors(jobs)

    def stream(self, request: Request, params: SamplingParams) -> Iterator[str]:
        """The text of a request's one output, piece by piece; closing the iterator cancels the request.

        Raises:
            CapacityError: as in :meth:`run`, before the first piece is asked for.
            EngineStepError: while it is read.
        """
        pieces = self._pieces(SamplingJob(request, params, self._decoder, streaming=True))
        next(pieces)
        return pieces

    async def astream(
        self, thread: EngineThread, request: Request, params: SamplingParams
    ) -> AsyncGenerator[str, None]:
        """:meth:`stream` for a coroutine.

        Raises:
            CapacityError, EngineStepError: while it is read.
        """
        job = SamplingJob(request, params, self._decoder, streaming=True)
        call = thread.submit(self.engine, [job], lambda: bool(job.pieces) or job.done)
        try:
            while not job.done or job.pieces:
                await call.news()
                while job.pieces:
                    yield job.pieces.popleft()
            _raise_errors([job])
        finally:
            call.close()

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
        self.run(jobs)
        logits = self._loop.call(lambda: _computed([job.logits for job in jobs if job.logits is not None]))
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


def _computed(logits: Sequence[Tensor]) -> Tensor:
    """Logits in one tensor, made on the engine's thread: on a GPU the caller's stream would not wait for them."""
    stacked = torch.stack(list(logits))
    if stacked.is_cuda:
        torch.cuda.current_stream(stacked.device).synchronize()
    return stacked


class _Batch:
    """Requests that one caller waits for together.

    Args:
        jobs: the requests.
        progress: is told how many are done.
    """

    def __init__(self, jobs: Sequence[Job], progress: Progress | None) -> None:
        self._jobs = jobs
        self._progress = progress
        self._num_reported = 0

    @property
    def is_over(self) -> bool:
        """Whether all are done and reported, or one has failed."""
        return self._num_reported == len(self._jobs) or self._has_failed

    def has_news(self) -> bool:
        """Whether there is something to report; asked on the engine's thread."""
        num_done = self._num_done
        is_progress = self._progress is not None and num_done > self._num_reported
        return is_progress or num_done == len(self._jobs) or self._has_failed

    def report(self) -> None:
        """Tell how many are done, on the caller's thread."""
        self._num_reported = self._num_done
        if self._progress is not None:
            self._progress(self._num_reported)

    @property
    def _num_done(self) -> int:
        return sum(job.done for job in self._jobs)

    @property
    def _has_failed(self) -> bool:
        return any(job.error is not None for job in self._jobs)


def _raise_errors(jobs: Sequence[Job]) -> None:
    error = next((job.error for job in jobs if job.error is not None), None)
    if error is not None:
        for job in jobs:
            job.error = None  # its traceback will hold the frames that hold the jobs
        try:
            raise error
        finally:
            del error
