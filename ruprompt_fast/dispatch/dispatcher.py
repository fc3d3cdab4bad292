"""Which path a request takes: the engine where it can, transformers' own generate where it must."""

from __future__ import annotations

import asyncio
import warnings
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from torch import Tensor

from ruprompt_fast.backends import PreparedModel
from ruprompt_fast.concurrency.fair_lock import FairLock
from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.dispatch.async_reading import read_in_threads
from ruprompt_fast.dispatch.engine_building import build_engine
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.dispatch.model_engine import ModelEngine, NoEngine, Progress
from ruprompt_fast.dispatch.routes import Routes, streaming_engine
from ruprompt_fast.embedding import detach_prompts
from ruprompt_fast.engine.engine_thread import EngineThread
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.engine.stats import ModelStats
from ruprompt_fast.errors import (
    DetachedModelError,
    EngineStepError,
    FallbackWarning,
    ModelChangedError,
    RupromptError,
    described,
)
from ruprompt_fast.fallback.call_context import check_attached
from ruprompt_fast.fallback.padded_generator import PaddedGenerator
from ruprompt_fast.requests.deep_requests import check_deep
from ruprompt_fast.requests.generation_task import GenerationTask
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.registry import LoadedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding
    from ruprompt_fast.requests.sampling_params import SamplingParams

_GONE = "the model was detached while this request ran; load it again and make the request again."
_CHANGED = (
    "the model was changed while this request ran (weights, layers, adapters, hooks or settings), and what was "
    "computed before does not fit what it is now; make the request again."
)


class Dispatcher:
    """Runs every request on the engine, or on the transformers fallback if its model or its settings need that.

    The engine is built at the first use, and again if anything has changed since that the model computes from; what was
    computed and packed before goes with the one before it.

    Args:
        model: the model, with ``embedding`` attached.
        tokenizer: its tokenizer.
        embedding: its input embedding.
        options: what the engine may take.

    Attributes:
        engine_thread: serves coroutines while it runs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        embedding: SplicedEmbedding,
        options: EngineOptions,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._embedding = embedding
        self._options = options
        engine_lock = FairLock()
        self._loop = StepLoop(self._step, engine_lock, options.threads)
        self.engine_thread = EngineThread(self._loop)
        guard = weakref.WeakMethod(self._guard)  # a strong reference would be a cycle around the model
        self._fallback = PaddedGenerator(
            model, tokenizer, embedding, options.max_batch_size, engine_lock, lambda: _call(guard())
        )
        self._current: ModelEngine | NoEngine | None = None
        self._has_warned = False

    def generate(self, tasks: Sequence[GenerationTask], progress: Progress | None = None) -> list[GenerationOutput]:
        """Generate for every task; ``num_return_sequences`` outputs each, in order.

        Raises:
            SettingError, CapacityError: a task cannot work. Nothing is run then.
            UnsupportedModelError: a deep prompt, and a model that only the transformers fallback runs.
            DetachedModelError: the model has lost its prompts.
            EngineStepError: a step of the engine failed.
            ModelChangedError: the model was changed while the tasks ran.
        """
        routes = Routes(tasks, self._ready(), self._options.max_batch_size)
        if routes.engine is not None:  # first: it refuses what does not fit
            routes.engine.run(routes.jobs, progress)
        return self._with_fallback(routes, progress)

    async def agenerate(
        self, tasks: Sequence[GenerationTask], progress: Progress | None = None
    ) -> list[GenerationOutput]:
        """:meth:`generate` for a coroutine; where the engine's thread runs, cancelling it cancels the tasks."""
        if not self.engine_thread.is_running:
            return await asyncio.to_thread(self.generate, tasks, progress)
        routes = await asyncio.to_thread(lambda: Routes(tasks, self._ready(), self._options.max_batch_size))
        if routes.engine is not None:
            await routes.engine.arun(self.engine_thread, routes.jobs, progress)
        if not routes.fallback_tasks:
            return routes.outputs(())
        return await asyncio.to_thread(self._with_fallback, routes, progress)

    def stream(self, task: GenerationTask) -> Iterator[str]:
        """The text of a task's one output, piece by piece.

        Raises:
            SettingError: the settings ask for several outputs or for beams; and what :meth:`generate` raises.
        """
        return self._begun(task, *self._streamed(task))

    async def astream(self, read_task: Callable[[], GenerationTask]) -> AsyncGenerator[str, None]:
        """:meth:`stream` for a coroutine, without a thread's help for each piece where the engine's thread runs.

        Args:
            read_task: gives the task, which may take its time.
        """

        def begin() -> AsyncGenerator[str, None]:
            task = read_task()
            params, engine = self._streamed(task)
            if engine is not None and self.engine_thread.is_running:
                return engine.astream(self.engine_thread, task.request, params)
            return read_in_threads(self._begun(task, params, engine))

        async with aclosing(await asyncio.to_thread(begin)) as pieces:
            async for piece in pieces:
                yield piece

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits after each request and after each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.

        Raises:
            UnsupportedModelError: a deep prompt, and a model that only the transformers fallback runs.
        """
        current = self._ready()
        if isinstance(current, ModelEngine):
            return current.continuation_logits(requests, continuation)
        for request in requests:
            check_deep(request, current.reason)
        return self._fallback.continuation_logits(requests, continuation)

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> None:
        """Compute the prompts' prefixes now, as far as there is room; nothing to do on the transformers fallback."""
        current = self._ready()
        if isinstance(current, ModelEngine):
            current.warm_up(prompts)

    def forget_retired(self) -> None:
        """Let go of the prefixes of prompts that were replaced or removed."""
        current = self._current
        if isinstance(current, ModelEngine):
            self._loop.call(current.engine.forget_retired)

    def refresh(self) -> None:
        """Compute and pack everything again, whether it seems to have changed or not."""
        self._loop.check_caller()
        check_attached(self._model, self._embedding)
        self._loop.call(lambda: self._renew(thorough=True))

    def stats(self) -> ModelStats:
        """How requests run, and the engine's counts."""
        current = self._ready()
        if isinstance(current, NoEngine):
            return ModelStats("fallback", current.reason, None)
        return ModelStats("engine", "", self._loop.call(current.engine.stats))

    def check_integrity(self) -> None:
        """Compare what the engine's parts hold.

        Raises:
            IntegrityError: they disagree, or a page is lost.
        """
        current = self._current
        if isinstance(current, ModelEngine):
            self._loop.call(current.engine.check_integrity)

    def close(self) -> None:
        """Free the pages and give the model its own layers and embedding back; requests that still run fail."""
        self._loop.call(self._give_back)

    def _give_back(self) -> None:
        prepared = self._take_current(lambda: DetachedModelError(_GONE))
        if prepared is not None:
            prepared.undo()
        if self._model.get_input_embeddings() is self._embedding:
            detach_prompts(self._model)

    def _step(self) -> bool:
        current = self._current
        if not isinstance(current, ModelEngine):
            return False
        engine = current.engine
        if engine.has_work and current.is_outdated():
            engine.close(_changed)
            return False
        failed_before = engine.num_failed_steps
        had_work = engine.step()
        # oneDNN keeps a scratchpad for each thread, and does not ask again for one that could not be had: after a step
        # that ran out of memory every later one on its thread would fail.
        self._loop.is_stale = engine.num_failed_steps > failed_before
        return had_work

    def _guard(self) -> Callable[[], None]:
        """A function that raises as soon as the model is not any more what it is now."""
        current = self._current

        def check() -> None:
            check_attached(self._model, self._embedding)
            if current is not None and (self._current is not current or current.is_outdated()):
                raise _changed()

        return check

    def _with_fallback(self, routes: Routes, progress: Progress | None) -> list[GenerationOutput]:
        """The outputs of a call, the engine's being there already."""
        report = None if progress is None else lambda num_done: progress(len(routes.jobs) + num_done)
        return routes.outputs(self._fallback.generate(routes.fallback_tasks, report) if routes.fallback_tasks else ())

    def _streamed(self, task: GenerationTask) -> tuple[SamplingParams, ModelEngine | None]:
        """A stream's settings, and the engine if it takes that."""
        params = task.params()
        return params, streaming_engine(task, self._ready(), self._options.max_batch_size)

    def _begun(self, task: GenerationTask, params: SamplingParams, engine: ModelEngine | None) -> Iterator[str]:
        if engine is None:
            return self._fallback.stream(task, params.stop_strings)
        return engine.stream(task.request, params)

    def _ready(self) -> ModelEngine | NoEngine:
        """The engine for the model as it is now."""
        self._loop.check_caller()
        check_attached(self._model, self._embedding)
        current = self._current
        if current is not None and not current.is_outdated():
            return current  # without asking the thread, which may be in a long step
        current = self._loop.call(self._renew)
        if isinstance(current, NoEngine) and not self._has_warned:
            self._has_warned = True
            name = type(self._model).__name__
            message = f"{name} takes transformers' own generate, which is slower than the engine: {current.reason}"
            warnings.warn(FallbackWarning(message), stacklevel=4)
        return current

    def _renew(self, thorough: bool = False) -> ModelEngine | NoEngine:
        """The engine, a new one if the model has changed.

        Raises:
            EngineStepError: the changed model does not run.
        """
        current = self._current
        if current is None or thorough or current.is_outdated():
            prepared = self._take_current(_changed)
            self._loop.is_stale = True  # unless it succeeds: building may run out of memory, too
            self._model.eval()
            try:
                whole = (self._model, self._tokenizer, self._embedding, self._options, self._loop)
                self._current = build_engine(*whole, prepared, thorough=thorough)
            except Exception as error:
                if current is None or isinstance(error, RupromptError):
                    raise
                raise EngineStepError(f"the changed model does not run: {described(error)}") from error
            self._loop.is_stale = False
            current = self._current
        return current

    def _take_current(self, error: Callable[[], Exception]) -> PreparedModel | None:
        """End the engine, its requests with an error, and give the model's prepared layers."""
        current, self._current = self._current, None
        if not isinstance(current, ModelEngine):
            return None
        current.engine.close(error)
        return current.prepared


def _changed() -> ModelChangedError:
    return ModelChangedError(_CHANGED)


def _call(method: Callable[[], Callable[[], None]] | None) -> Callable[[], None]:
    return (lambda: None) if method is None else method()
