"""What a step has computed, and what its requests make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ruprompt_fast.engine.jobs import Job
from ruprompt_fast.errors import EngineStepError, RupromptError, described
from ruprompt_fast.sampling.sampling_rows import Chosen, SampledToken

if TYPE_CHECKING:
    from ruprompt_fast.backends.base import Runner


@dataclass(frozen=True, slots=True)
class Pending:
    """A step that was started.

    Attributes:
        logits: [num_logits, vocabulary], which may still be on their way.
        request_ids: for every row of them the request that it belongs to.
    """

    logits: Tensor
    request_ids: list[int]


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to a request: for each sequence from now on, the one that it continues; None for no change."""

    job: Job
    parents: list[int] | None


def advance(pending: Pending, jobs: Mapping[int, Job], runner: Runner) -> list[Change]:
    """Choose once for the whole step, and have every request take in what was chosen for it.

    Args:
        pending: the step; the logits of one request's sequences are rows next to each other.
        jobs: the requests by their ids.
        runner: has computed the logits, and chooses.
    """
    in_step = [jobs[request_id] for request_id, _ in groupby(pending.request_ids)]
    rows = [job.rows() for job in in_step]
    chosen = runner.sample(pending.logits, [row for of_job in rows for row in of_job])
    changes, start = [], 0
    for job, of_job in zip(in_step, rows, strict=True):
        span = slice(start, start + len(of_job))
        changes.append(Change(job, _advanced(job, chosen[span], pending.logits[span])))
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
