"""The engine as callers use it: whole batches, streams, and logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.engine.engine import Engine
from ruprompt_fast.engine.jobs import BeamJob, Job, LogitsJob, SamplingJob
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.requests.decoding import TextDecoder
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.sampling_params import SamplingParams
from ruprompt_fast.requests.stopping import StopTexts
from ruprompt_fast.sampling.beam_search import BeamSearch
from ruprompt_fast.sampling.sampler import Sampler

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ruprompt_fast.requests.registry import LoadedPrompt

Progress = Callable[[int], None]
"""Is told how many requests are done."""


class EngineGenerator:
    """Runs requests on an engine; many threads may call it, and their requests share steps.

    Args:
        engine: the engine.
        loop: runs the engine's steps, and whatever else changes it.
        tokenizer: decodes what is generated.
        vocab_size: columns of the logits that are tokens.
        banned_ids: token ids that are never generated.
    """

    def __init__(
        self,
        engine: Engine,
        loop: StepLoop,
        tokenizer: PreTrainedTokenizerBase,
        vocab_size: int,
        banned_ids: Sequence[int],
    ) -> None:
        self._engine = engine
        self._loop = loop
        self._decoder = TextDecoder(tokenizer, vocab_size)
        self._vocab_size = vocab_size
        self._banned_ids = banned_ids
        self._sampler = Sampler(vocab_size, banned_ids)

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
        """The text of a request's one output, piece by piece; closing the iterator drops the request.

        Raises:
            CapacityError: as in :meth:`generate`, before the first piece is asked for.
            EngineStepError: while it is read.
        """
        pieces = self._pieces(SamplingJob(request, params, self._sampler, self._decoder, streaming=True))
        next(pieces)
        return pieces

    def _pieces(self, job: SamplingJob) -> Iterator[str]:
        """The pieces behind an empty one: as soon as that is read, closing the iterator has an effect."""
        try:
            self._loop.call(lambda: self._engine.add([job]))
            yield ""
            while not job.done or job.pieces:
                self._loop.run_until(lambda: bool(job.pieces) or job.done)
                while job.pieces:
                    yield job.pieces.popleft()
            _raise_errors([job])
        finally:
            self._engine.drop([job])

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits behind each request and behind each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.
        """
        lengths = range(len(continuation) + 1)
        jobs = [LogitsJob(request.followed_by(continuation[:length])) for request in requests for length in lengths]
        self._run(jobs, None)
        logits = torch.stack([job.logits for job in jobs if job.logits is not None])
        return logits.view(len(requests), len(lengths), -1)

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> None:
        """Compute the prompts' prefixes, as far as there is room.

        Raises:
            CapacityError: a prefix can never fit; the others are asked for all the same.
            EngineStepError: a step failed that computed one of them.
        """
        warm_up = self._loop.call(lambda: self._engine.warm_up(prompts))
        self._loop.run_until(lambda: warm_up.error is not None or not self._engine.is_warming)
        if warm_up.error is not None:
            raise warm_up.error

    def _job(self, request: Request, params: SamplingParams) -> SamplingJob | BeamJob:
        if params.num_beams == 1:
            return SamplingJob(request, params, self._sampler, self._decoder)
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
            self._loop.call(lambda: self._engine.add(jobs))
            while waiting and not any(job.error is not None for job in jobs):
                self._loop.run_until(some_done)
                num_done = len(jobs) - len(waiting)
                if progress is not None:
                    progress(num_done)
        finally:
            self._engine.drop(jobs)
        _raise_errors(jobs)


def _raise_errors(jobs: Sequence[Job]) -> None:
    error = next((job.error for job in jobs if job.error is not None), None)
    if error is not None:
        for job in jobs:
            job.error = None  # its traceback will hold the frames that hold the jobs
        try:
            raise error
        finally:
            del error
