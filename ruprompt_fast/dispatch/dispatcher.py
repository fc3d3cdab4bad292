"""Which path a request takes: the engine where it can, transformers' own generate where it must."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ruprompt_fast.backends import PreparedModel
from ruprompt_fast.concurrency.fair_lock import FairLock
from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.dispatch.engine_options import EngineOptions
from ruprompt_fast.dispatch.model_engine import ModelEngine, NoEngine, Progress, build_engine
from ruprompt_fast.embedding import detach_prompts
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.engine.stats import ModelStats
from ruprompt_fast.errors import (
    DetachedModelError,
    EngineStepError,
    FallbackWarning,
    ModelChangedError,
    RupromptError,
    SettingError,
    UnsupportedModelError,
    described,
)
from ruprompt_fast.fallback.call_context import check_attached
from ruprompt_fast.fallback.padded_generator import PaddedGenerator
from ruprompt_fast.integration.watch import Watch
from ruprompt_fast.requests.coverage import padded_only_settings
from ruprompt_fast.requests.deep_requests import check_deep
from ruprompt_fast.requests.generation_task import GenerationTask
from ruprompt_fast.requests.inputs import Request
from ruprompt_fast.requests.registry import LoadedPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from ruprompt_fast.embedding import SplicedEmbedding

_GONE = "the model was detached while this request ran; load it anew and make the request again."
_CHANGED = (
    "the model was changed while this request ran (weights, layers, adapters, hooks or settings), and what was "
    "computed before does not fit what it is now; make the request again."
)


class Dispatcher:
    """Runs every request on the engine, or on the padded path if its model or its settings need that.

    The engine is built at the first use, and again if anything has changed since that the model computes from; what was
    computed and packed before goes with the one before it.

    Args:
        model: the model, with ``embedding`` attached.
        tokenizer: its tokenizer.
        embedding: its input embedding.
        options: what the engine may take.
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
        turn = FairLock()
        step = weakref.WeakMethod(self._step)  # a strong reference would be a cycle around the model
        self._loop = StepLoop(lambda: (run := step()) is not None and run(), turn, options.threads)
        guard = weakref.WeakMethod(self._guard)
        self._padded = PaddedGenerator(
            model, tokenizer, embedding, options.max_batch_size, turn, lambda: _call(guard())
        )
        self._current: ModelEngine | NoEngine | None = None
        self._has_warned = False

    def generate(self, tasks: Sequence[GenerationTask], progress: Progress | None = None) -> list[GenerationOutput]:
        """Generate for every task; ``num_return_sequences`` outputs each, in order.

        Raises:
            SettingError, CapacityError: a task cannot work. Nothing is run then.
            UnsupportedModelError: a deep prompt, and a model that only the padded path runs.
            DetachedModelError: the model has lost its prompts.
            EngineStepError: a step of the engine failed.
            ModelChangedError: the model was changed while the tasks ran.
        """
        current = self._ready()
        needs = [self._padded_needs(current, task) for task in tasks]
        engine_tasks = [task for task, need in zip(tasks, needs, strict=True) if not need]
        padded_tasks = [task for task, need in zip(tasks, needs, strict=True) if need]
        params = [task.params() for task in engine_tasks]
        by_engine: Iterator[list[GenerationOutput]] = iter(())
        if engine_tasks and isinstance(current, ModelEngine):  # first: it refuses what does not fit
            by_engine = iter(current.generate([task.request for task in engine_tasks], params, progress))
        num_before = len(engine_tasks)
        report = None if progress is None else lambda num_done: progress(num_before + num_done)
        by_transformers = iter(self._padded.generate(padded_tasks, report) if padded_tasks else ())
        ordered = [next(by_transformers) if need else next(by_engine) for need in needs]
        return [output for of_task in ordered for output in of_task]

    def stream(self, task: GenerationTask) -> Iterator[str]:
        """The text of a task's one output, piece by piece.

        Raises:
            SettingError: the settings ask for several outputs or for beams; and what :meth:`generate` raises.
        """
        params = task.params()
        if params.num_beams > 1 or params.num_return_sequences > 1:
            raise SettingError(
                "a stream gives one text as it is written: num_beams and num_return_sequences must be 1; found "
                f"{params.num_beams} and {params.num_return_sequences}."
            )
        current = self._ready()
        needs = self._padded_needs(current, task)
        if isinstance(current, NoEngine) or needs:
            return self._padded.stream(task, params.stop_strings)
        return current.stream(task.request, params)

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits behind each request and behind each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.

        Raises:
            UnsupportedModelError: a deep prompt, and a model that only the padded path runs.
        """
        current = self._ready()
        if isinstance(current, ModelEngine):
            return current.continuation_logits(requests, continuation)
        for request in requests:
            check_deep(request, current.reason)
        return self._padded.continuation_logits(requests, continuation)

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> None:
        """Compute the prompts' prefixes now, as far as there is room; nothing to do on the padded path."""
        current = self._ready()
        if isinstance(current, ModelEngine):
            current.warm_up(prompts)

    def forget_retired(self) -> None:
        """Let go of the prefixes of prompts that were replaced or removed."""
        current = self._current
        if isinstance(current, ModelEngine):
            self._loop.call(current.engine.forget_retired)

    def refresh(self) -> None:
        """Compute and pack everything anew, whether it seems to have changed or not."""
        self._loop.check_caller()
        check_attached(self._model, self._embedding)
        self._loop.call(lambda: self._renew(thorough=True))

    def stats(self) -> ModelStats:
        """How requests run, and the engine's counts."""
        current = self._ready()
        if isinstance(current, NoEngine):
            return ModelStats("padded", current.reason, None)
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
            if current is not None and (self._current is not current or current.is_outdated(self._model)):
                raise _changed()

        return check

    def _padded_needs(self, current: ModelEngine | NoEngine, task: GenerationTask) -> str:
        """Why a task has to take the padded path; empty if it need not."""
        settings = padded_only_settings(task.config)
        most = self._options.max_batch_size
        if task.num_sequences > most:
            settings = [*settings, f"{task.num_sequences} sequences, more than max_batch_size={most}"]
        reason = current.reason if isinstance(current, NoEngine) else ""
        check_deep(task.request, reason, settings)
        why = reason or (f"of {', '.join(settings)}" if settings else "")
        if why and (names := task.extras.engine_only()):
            raise SettingError(
                f"{', '.join(names)}: only the engine knows these, and this request takes transformers' own generate "
                f"because {why}. Leave them out, or what sends the request there."
            )
        return why

    def _ready(self) -> ModelEngine | NoEngine:
        """The engine for the model as it is now."""
        self._loop.check_caller()
        check_attached(self._model, self._embedding)
        current = self._current
        if current is not None and not current.is_outdated(self._model):
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
        if current is None or thorough or current.is_outdated(self._model):
            prepared = self._take_current(_changed)
            self._loop.is_stale = True  # unless it succeeds: building may run out of memory, too
            self._model.eval()
            try:
                self._current = self._build(prepared, thorough)
            except Exception as error:
                if current is None or isinstance(error, RupromptError):
                    raise
                raise EngineStepError(f"the changed model does not run: {described(error)}") from error
            self._loop.is_stale = False
            current = self._current
        return current

    def _build(self, prepared: PreparedModel | None, thorough: bool) -> ModelEngine | NoEngine:
        try:
            return build_engine(
                self._model, self._tokenizer, self._embedding, self._options, self._loop, prepared, thorough=thorough
            )
        except UnsupportedModelError as error:
            if self._options.quantization is not None:
                asked = f'quantization="{self._options.quantization}"'
                raise UnsupportedModelError(
                    f"{asked} needs the engine, and this model cannot run on it: {error} Leave {asked} out."
                ) from error
            return NoEngine(str(error), Watch(self._embedding))

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
