"""Which way each request of a call takes."""

from __future__ import annotations

from collections.abc import Sequence

from ruprompt_fast.core import GenerationOutput
from ruprompt_fast.dispatch.model_engine import ModelEngine, NoEngine
from ruprompt_fast.engine.jobs import BeamJob, SamplingJob
from ruprompt_fast.errors import SettingError
from ruprompt_fast.requests.coverage import fallback_only_settings
from ruprompt_fast.requests.deep_requests import check_deep
from ruprompt_fast.requests.generation_task import GenerationTask


class Routes:
    """The tasks of one call, apart by the way that they take.

    Args:
        tasks: the call's, in order.
        current: the engine, if there is one for the model.
        max_batch_size: sequences that the engine runs together at most.

    Attributes:
        engine: the engine; None where no task takes it.
        jobs: the tasks that take it, as it runs them.
        fallback_tasks: those that take transformers' own generate.

    Raises:
        SettingError: a task cannot work.
        UnsupportedModelError: a deep prompt, and a task that does not take the engine.
    """

    def __init__(self, tasks: Sequence[GenerationTask], current: ModelEngine | NoEngine, max_batch_size: int) -> None:
        self._are_fallback = [bool(fallback_reason(task, current, max_batch_size)) for task in tasks]
        routed = list(zip(tasks, self._are_fallback, strict=True))
        engine_tasks = [task for task, is_fallback in routed if not is_fallback]
        self.fallback_tasks = [task for task, is_fallback in routed if is_fallback]
        self.engine: ModelEngine | None = None
        self.jobs: list[SamplingJob | BeamJob] = []
        if engine_tasks and isinstance(current, ModelEngine):
            self.engine = current
            self.jobs = current.jobs([task.request for task in engine_tasks], [task.params() for task in engine_tasks])

    def outputs(self, by_fallback: Sequence[list[GenerationOutput]]) -> list[GenerationOutput]:
        """The outputs of all tasks, in the order of the call.

        Args:
            by_fallback: those of :attr:`fallback_tasks`.
        """
        of_fallback, of_engine = iter(by_fallback), (job.outputs() for job in self.jobs)
        ordered = [next(of_fallback) if is_fallback else next(of_engine) for is_fallback in self._are_fallback]
        return [output for of_task in ordered for output in of_task]


def streaming_engine(task: GenerationTask, current: ModelEngine | NoEngine, max_batch_size: int) -> ModelEngine | None:
    """The engine, if a stream takes that.

    Raises:
        SettingError: the settings ask for several outputs or for beams; and what :func:`fallback_reason` raises.
    """
    params = task.resolved
    if params.num_beams > 1 or params.num_return_sequences > 1:
        raise SettingError(
            "a stream gives one text as it is written: num_beams and num_return_sequences must be 1; found "
            f"{params.num_beams} and {params.num_return_sequences}."
        )
    why = fallback_reason(task, current, max_batch_size)
    return None if why or isinstance(current, NoEngine) else current


def fallback_reason(task: GenerationTask, current: ModelEngine | NoEngine, max_batch_size: int) -> str:
    """Why a task has to take transformers' own generate; empty if it need not.

    Raises:
        SettingError: it has settings that only the engine knows.
        UnsupportedModelError: its prompt is deep, which only the engine serves.
    """
    settings = fallback_only_settings(task.config)
    if task.num_sequences > max_batch_size:
        settings = [*settings, f"{task.num_sequences} sequences, more than max_batch_size={max_batch_size}"]
    reason = current.reason if isinstance(current, NoEngine) else ""
    check_deep(task.request, reason, settings)
    why = reason or (f"of {', '.join(settings)}" if settings else "")
    if why and (names := task.extras.engine_only()):
        raise SettingError(
            f"{', '.join(names)}: only the engine knows these, and this request takes transformers' own generate "
            f"because {why}. Leave them out, or what sends the request there."
        )
    return why
