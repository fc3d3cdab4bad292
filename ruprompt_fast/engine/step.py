"""What a step has computed, and what its requests make of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

from torch import Tensor

from ruprompt_fast.engine.jobs import Job
from ruprompt_fast.errors import EngineStepError, RupromptError, described
from ruprompt_fast.sampling.sampling_rows import Chosen, SampledToken

if TYPE_CHECKING:
    from ruprompt_fast.backends.base import LaunchedStep


@dataclass(slots=True, eq=False)
class Pending:
    """A step that was launched.

    Attributes:
        launched: what the device computes.
        jobs: the requests in it that get logits, in the order of their rows.
        num_rows: how many rows each of them has.
        restarted: those of the requests whose tokens of this step do not count: they were given a wrong one before.
    """

    launched: LaunchedStep
    jobs: Sequence[Job]
    num_rows: Sequence[int]
    restarted: set[Job] = field(default_factory=set)

    @property
    def runs_ahead(self) -> bool:
        """Whether the next step is to be launched before this one's tokens are read."""
        return self.launched.runs_ahead and all(job.can_run_ahead for job in self.jobs)

    def restart(self, jobs: Sequence[Job]) -> list[int]:
        """Do not count the step's tokens for those of these requests that are in it; their ids."""
        self.restarted.update(job for job in jobs if job in self.jobs and not job.done)
        return [job.request_id for job in self.restarted]

    def put_in_flight(self) -> list[int]:
        """Have every request go on with the token that it will get; the ids of those for which it is the last.

        For a step that runs ahead: its requests have a row each.
        """
        ending = []
        for job, span in self.spans():
            job.in_flight_row = span.start
            if job.ends_next:
                ending.append(job.request_id)
        return ending

    def spans(self) -> Iterator[tuple[Job, slice]]:
        """The requests that take something in, and their rows."""
        start = 0
        for job, num_rows in zip(self.jobs, self.num_rows, strict=True):
            span = slice(start, start + num_rows)
            start = span.stop
            if not job.done and job not in self.restarted:
                yield job, span


@dataclass(frozen=True, slots=True)
class Change:
    """What a step did to a request.

    Attributes:
        job: the request.
        parents: for each sequence from now on, the one that it continues; None for no change.
        overruled: whether the next step has been launched with another token than the one that was chosen.
    """

    job: Job
    parents: list[int] | None
    overruled: bool


def advance(pending: Pending) -> list[Change]:
    """Wait for a step, and have every request take in what was chosen for it."""
    chosen = pending.launched.chosen()
    overruled = pending.launched.overruled
    changes = []
    for job, span in pending.spans():
        job.in_flight_row = None
        parents = _advanced(job, chosen[span], pending.launched.logits[span])
        changes.append(Change(job, parents, span.start in overruled))
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
