"""What a step has computed, and what its requests make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ruprompt_fast.engine.jobs import Job
from ruprompt_fast.errors import EngineStepError, RupromptError, described
from ruprompt_fast.sampling.sampling_rows import Chosen, SampledToken

if TYPE_CHECKING:
    from ruprompt_fast.backends.base import LaunchedStep


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was started.

    Attributes:
        launched: what the device computes.
        jobs: the requests in it that get logits, in the order of their rows.
        num_rows: how many rows each of them has.
    """

    launched: LaunchedStep
    jobs: Sequence[Job]
    num_rows: Sequence[int]


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to a request: for each sequence from now on, the one that it continues; None for no change."""

    job: Job
    parents: list[int] | None


def advance(pending: Pending) -> list[Change]:
    """Wait for a step, and have every request take in what was chosen for it."""
    chosen = pending.launched.chosen()
    changes, start = [], 0
    for job, num_rows in zip(pending.jobs, pending.num_rows, strict=True):
        span = slice(start, start + num_rows)
        changes.append(Change(job, _advanced(job, chosen[span], pending.launched.logits[span])))
        start = span.stop
    return changes


def _advanced(job: Job, chosen: Sequence[Chosen | None], logits: Tensor) -> list[int] | None:
    """What the job returns. An error in its own numbers or texts ends it alone: its neighbours are not to blame."""
    error = next((each for each in chosen if isinstance(each, Exception)), None)
    if error is not None:
        _fail(job, error)
        return None
    try:
        return job.advance(cast("Sequence[SampledToken | None]", chosen), logits)
    except Exception as raised:
        _fail(job, raised)
        return None


def _fail(job: Job, cause: Exception) -> None:
    if isinstance(cause, RupromptError):
        job.fail(cause)
        return
    error = EngineStepError(f"the next token of a request could not be chosen: {described(cause)}")
    error.__cause__ = cause
    job.fail(error)
