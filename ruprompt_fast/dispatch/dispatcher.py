"""Which path a request takes: the engine where it can, transformers' own generate where it must."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ruprompt_fast.backends.cpu.packing import PackedModel
from ruprompt_fast.concurrency.fair_lock import FairLock
from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.dispatch.build import EngineOptions, build_engine
from ruprompt_fast.dispatch.current import Current
from ruprompt_fast.embedding import detach_prompts
from ruprompt_fast.engine.generator import EngineGenerator, Progress
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
from ruprompt_fast.requests.stopping import unused_ids

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
        self._current: Current | None = None
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
        if engine_tasks and current.generator is not None:  # first: it refuses what does not fit
            by_engine = iter(current.generator.generate([task.request for task in engine_tasks], params, progress))
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
        if current.generator is None or needs:
            return self._padded.stream(task, params.stop_strings)
        return current.generator.stream(task.request, params)

    def continuation_logits(self, requests: Sequence[Request], continuation: Sequence[int]) -> Tensor:
        """Logits behind each request and behind each token of a continuation.

        Returns:
            [requests, len(continuation) + 1, vocabulary], float32.

        Raises:
            UnsupportedModelError: a deep prompt, and a model that only the padded path runs.
        """
        current = self._ready()
        for request in requests:
            check_deep(request, current.reason)
        return (current.generator or self._padded).continuation_logits(requests, continuation)

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> None:
        """Compute the prompts' prefixes now, as far as there is room; nothing to do on the padded path."""
        generator = self._ready().generator
        if generator is not None:
            generator.warm_up(prompts)

    def forget_retired(self) -> None:
        """Let go of the prefixes of prompts that were replaced or removed."""
        current = self._current
        if current is not None and current.built is not None:
            self._loop.call(current.built.engine.forget_retired)

    def refresh(self) -> None:
        """Compute and pack everything anew, whether it seems to have changed or not."""
        self._loop.check_caller()
        check_attached(self._model, self._embedding)
        self._loop.call(lambda: self._renew(thorough=True))

    def stats(self) -> ModelStats:
        """How requests run, and the engine's counts."""
        current = self._ready()
        if current.built is None:
            return ModelStats("padded", current.reason, None)
        return ModelStats("engine", "", self._loop.call(current.built.engine.stats))

    def check_integrity(self) -> None:
        """Compare what the engine's parts hold.

        Raises:
            IntegrityError: they disagree, or a page is lost.
        """
        current = self._current
        if current is not None and current.built is not None:
            self._loop.call(current.built.engine.check_integrity)

    def close(self) -> None:
        """Free the pages and give the model its own layers and embedding back; requests that still run fail."""
        self._loop.call(self._give_back)

    def _give_back(self) -> None:
        packed = self._take_current(lambda: DetachedModelError(_GONE))
        if packed is not None:
            packed.unpack()
        if self._model.get_input_embeddings() is self._embedding:
            detach_prompts(self._model)

    def _step(self) -> bool:
        built = None if self._current is None else self._current.built
        if built is None:
            return False
        if built.engine.has_work and built.is_outdated():
            built.engine.close(_changed)
            return False
        failed_before = built.engine.num_failed_steps
        had_work = built.engine.step()
        # oneDNN keeps a scratchpad for each thread, and does not ask again for one that could not be had: after a step
        # that ran out of memory every later one on its thread would fail.
        self._loop.is_stale = built.engine.num_failed_steps > failed_before
        return had_work

    def _guard(self) -> Callable[[], None]:
        """A function that raises as soon as the model is not any more what it is now."""
        current = self._current

        def check() -> None:
            check_attached(self._model, self._embedding)
            if current is not None and (self._current is not current or current.is_outdated(self._model)):
                raise _changed()

        return check

    def _padded_needs(self, current: Current, task: GenerationTask) -> str:
        """Why a task has to take the padded path; empty if it need not."""
        settings = padded_only_settings(task.config)
        most = self._options.max_batch_size
        if task.num_sequences > most:
            settings = [*settings, f"{task.num_sequences} sequences, more than max_batch_size={most}"]
        check_deep(task.request, current.reason, settings)
        why = current.reason or (f"of {', '.join(settings)}" if settings else "")
        if why and (names := task.extras.engine_only()):
            raise SettingError(
                f"{', '.join(names)}: only the engine knows these, and this request takes transformers' own generate "
                f"because {why}. Leave them out, or what sends the request there."
            )
        return why

    def _ready(self) -> Current:
        """The engine for the model as it is now."""
        self._loop.check_caller()
        check_attached(self._model, self._embedding)
        current = self._current
        if current is not None and not current.is_outdated(self._model):
            return current  # without asking the thread, which may be in a long step
        current = self._loop.call(self._renew)
        if current.reason and not self._has_warned:
            self._has_warned = True
            name = type(self._model).__name__
            message = f"{name} takes transformers' own generate, which is slower than the engine: {current.reason}"
            warnings.warn(FallbackWarning(message), stacklevel=4)
        return current

    def _renew(self, thorough: bool = False) -> Current:
        """The engine, a new one if the model has changed.

        Raises:
            EngineStepError: the changed model does not run.
        """
        current = self._current
        if current is None or thorough or current.is_outdated(self._model):
            packed = self._take_current(_changed)
            self._loop.is_stale = True  # unless it succeeds: building may run out of memory, too
            self._model.eval()
            try:
                self._current = self._build(packed, thorough)
            except Exception as error:
                if current is None or isinstance(error, RupromptError):
                    raise
                raise EngineStepError(f"the changed model does not run: {described(error)}") from error
            self._loop.is_stale = False
            current = self._current
        return current

    def _build(self, packed: PackedModel | None, thorough: bool) -> Current:
        try:
            built = build_engine(self._model, self._tokenizer, self._embedding, self._options, packed, thorough)
        except UnsupportedModelError as error:
            if self._options.int8:
                raise UnsupportedModelError(
                    f'dtype="int8" needs the engine, and this model cannot run on it: {error} Leave dtype="int8" out.'
                ) from error
            return Current(str(error), None, None, Watch(self._embedding))
        generator = EngineGenerator(
            built.engine,
            self._loop,
            self._tokenizer,
            self._model.config.get_text_config().vocab_size,
            unused_ids(self._model, self._tokenizer),
        )
        return Current("", built, generator, built.watch)

    def _take_current(self, error: Callable[[], Exception]) -> PackedModel | None:
        """End the engine, its requests with an error, and give its packed layers."""
        built = None if self._current is None else self._current.built
        self._current = None
        if built is None:
            return None
        built.engine.close(error)
        return built.packed


def _changed() -> ModelChangedError:
    return ModelChangedError(_CHANGED)


def _call(method: Callable[[], Callable[[], None]] | None) -> Callable[[], None]:
    return (lambda: None) if method is None else method()
