"""Continuous batching: requests of any mix of prompts enter and leave the batch at every step."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Sequence
from itertools import groupby, pairwise
from typing import TYPE_CHECKING

from ruprompt_fast.cache import PrefixCache
from ruprompt_fast.engine.batch import BatchBuilder, TokenSource
from ruprompt_fast.engine.jobs import Job
from ruprompt_fast.engine.loop import step_error
from ruprompt_fast.engine.prefixes import PromptPrefixes, WarmUp
from ruprompt_fast.engine.stats import EngineStats
from ruprompt_fast.engine.step import Pending, advance
from ruprompt_fast.errors import CapacityError, IntegrityError

if TYPE_CHECKING:
    from ruprompt_fast._C import Plan, Scheduler
    from ruprompt_fast.backends.base import Runner
    from ruprompt_fast.requests.registry import LoadedPrompt


class Engine:
    """Requests, and the step that moves all of them on.

    Not thread-safe: everything but :meth:`cancel` runs on one thread (:class:`~ruprompt_fast.engine.loop.StepLoop`).

    Args:
        scheduler: decides what runs; owns the requests' state and the pages.
        prefix_cache: the prompts' prefixes.
        prefixes: from a request to its prefix.
        builder: packs a plan's tokens.
        runner: computes a step, and holds the keys and values.
        max_step_tokens: tokens of one step at most; longer inputs are computed in chunks.

    Attributes:
        num_failed_steps: steps that raised something.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        prefix_cache: PrefixCache,
        prefixes: PromptPrefixes,
        builder: BatchBuilder,
        runner: Runner,
        max_step_tokens: int,
    ) -> None:
        self._scheduler = scheduler
        self._prefix_cache = prefix_cache
        self._prefixes = prefixes
        self._builder = builder
        self._runner = runner
        self._max_step_tokens = max_step_tokens
        self._jobs: dict[int, Job] = {}
        self._in_flight: Pending | None = None
        self._cancelled: deque[Job] = deque()
        self._warm_ups: weakref.WeakSet[WarmUp] = weakref.WeakSet()
        self.num_failed_steps = 0
        self._closed: Callable[[], Exception] | None = None
        self._next_id = 0

    def add(self, jobs: Sequence[Job]) -> None:
        """Take all of these requests in, or none.

        Raises:
            CapacityError: one can never fit the pool; the message gives the numbers.
        """
        if self._closed is not None:
            raise self._closed()
        self.forget_retired()
        added: list[int] = []
        try:
            for job in jobs:
                if not job.done:  # cancelled before it came here
                    added.append(self._add(job))  # noqa: PERF401  (what was added before an error has to leave)
        except BaseException:
            for request_id in added:
                self._leave(request_id)
            raise

    def step(self) -> bool:
        """Launch what the scheduler plans next, and have the requests take in the tokens of the step before.

        A step that does not run ahead has its own tokens taken in before this returns. A failing step fails the
        requests that are in it; the others go on with the next one.

        Returns:
            Whether there was something to do.
        """
        self._leave_cancelled()
        if not self.has_work:
            return False
        before, self._in_flight = self._in_flight, None
        plan: Plan | None = None
        try:
            if self._has_plans:
                plan = self._scheduler.step(self._max_step_tokens)
            try:
                pending = None if plan is None else self._launch(plan)
            finally:
                overruled = self._take_in(before)
            if plan is not None:
                self._finish(pending, overruled)
        except BaseException as error:
            self._recover(plan, before, error)
        return True

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Have those of the requests that are still in the engine leave it, before its next step.

        May be called on any thread: the garbage collector may close the iterator of a stream in the midst of a step.
        """
        self._cancelled.extend(job for job in jobs if not job.done)

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> WarmUp:
        """Ask for the prompts' prefixes ahead of the requests that need them.

        Raises:
            CapacityError: a prefix can never fit; the others are asked for all the same.
        """
        if self._closed is not None:
            raise self._closed()
        self.forget_retired()
        warm_up = self._prefixes.warm_up(prompts)
        self._warm_ups.add(warm_up)
        return warm_up

    def forget_retired(self) -> None:
        """Let go of the prefixes of prompts that were replaced or removed, as soon as no request uses them."""
        self._prefixes.forget_retired()

    def close(self, error: Callable[[], Exception]) -> None:
        """End all requests with an error of their own, and refuse new ones with such an error."""
        self._closed = error
        self._in_flight = None
        self._leave_cancelled()
        for request_id, job in list(self._jobs.items()):
            job.fail(error())
            self._leave(request_id)
        for warm_up in list(self._warm_ups):
            warm_up.error = error()
        # Callers that have not been told yet hold the engine, while the next one is made.
        self._runner.close()

    @property
    def is_closed(self) -> bool:
        """Whether it takes no requests any more."""
        return self._closed is not None

    @property
    def is_warming(self) -> bool:
        """Whether prefixes are asked for that no step has computed yet."""
        return self._closed is None and self._scheduler.num_warming > 0

    @property
    def has_work(self) -> bool:
        """Whether a step has something to do."""
        return self._closed is None and (self._has_plans or self._in_flight is not None)

    def stats(self) -> EngineStats:
        """Counts and sizes so far."""
        self._leave_cancelled()
        pages = self._runner.pages
        return EngineStats(
            dict(self._scheduler.stats()),
            self._prefix_cache.stats(),
            pages.num_pages,
            pages.page_size,
            pages.page_bytes,
            self._runner.stats(),
        )

    def check_integrity(self) -> None:
        """Compare what scheduler, cache and engine hold, after the tokens of a step in flight were taken in.

        Raises:
            IntegrityError: they disagree, or a page is lost; an error of this package.
        """
        self._leave_cancelled()
        before, self._in_flight = self._in_flight, None
        try:
            self._take_in(before)
        except BaseException as error:
            self._recover(None, before, error)
            raise
        try:
            self._scheduler.check()
        except RuntimeError as error:
            raise IntegrityError(f"the scheduler contradicts itself: {error}") from error
        if self._scheduler.num_unfinished != len(self._jobs):
            raise IntegrityError(
                f"the scheduler holds {self._scheduler.num_unfinished} requests, the engine {len(self._jobs)}."
            )
        self._prefixes.check([job.prefix for job in self._jobs.values()])

    def _add(self, job: Job) -> int:
        request_id = self._next_id
        self._next_id += 1
        job.request_id = request_id
        lease = self._prefixes.hold(job.request)
        job.prefix = lease.entry
        self._jobs[request_id] = job
        try:
            self._scheduler.add(
                request_id,
                tenant=lease.tenant,
                prefix_id=-1 if lease.entry is None else lease.entry.prefix_id,
                num_tokens=len(job.input_ids),
                max_new_tokens=job.max_new_tokens,
                max_sequences=job.num_sequences,
                page_hashes=lease.page_hashes,
            )
        except BaseException as error:
            self._leave(request_id)
            if isinstance(error, CapacityError):
                raise CapacityError(
                    f"a request can never run: {error}. Ask for fewer tokens or sequences, or load the model with "
                    "larger kv_cache_bytes, prefix_cache_bytes or max_batch_size."
                ) from error
            raise
        return request_id

    def _move_pages(self, plan: Plan) -> None:
        """Save what leaves the device, bring back what returns, and copy what two would write."""
        if plan.num_evictions or plan.num_loads:
            starts = plan.evicted_page_starts[: plan.num_evictions + 1].tolist()
            pages = [plan.evicted_pages[start:stop] for start, stop in pairwise(starts)]
            self._prefix_cache.exchange(
                zip(plan.evicted_ids[: plan.num_evictions].tolist(), pages, strict=True),
                plan.load_ids[: plan.num_loads].tolist(),
            )
        if plan.num_copies:
            self._runner.pages.copy_pages(plan.copies[: plan.num_copies])

    def _launch(self, plan: Plan) -> Pending | None:
        """Start computing a plan; None where it has only pages to load."""
        self._move_pages(plan)
        if not plan.num_rows:
            return None
        batch, request_ids = self._builder.build(plan, self._source)
        jobs = [self._jobs[request_id] for request_id, _ in groupby(request_ids)]
        rows = [job.rows() for job in jobs]
        in_flight = [int(job.in_flight_row is not None) for job, of_job in zip(jobs, rows, strict=True) for _ in of_job]
        launched = self._runner.launch(batch, [row for of_job in rows for row in of_job], in_flight)
        return Pending(launched, jobs, [len(of_job) for of_job in rows])

    def _take_in(self, before: Pending | None) -> list[Job]:
        """Have requests take in the tokens of a step that the scheduler is done with; those that got a wrong one ahead.

        Requests that are done leave, also out of the step that was launched since.
        """
        changes = [] if before is None else advance(before)
        for change in changes:
            if change.job.done:
                self._leave(change.job.request_id)
        return [change.job for change in changes if change.overruled and not change.job.done]

    def _finish(self, pending: Pending | None, overruled: Sequence[Job]) -> None:
        """End the scheduler's step, with the tokens that were chosen; before they are known, if it runs ahead.

        Args:
            pending: the step; None where it has only pages to load.
            overruled: requests that were given a wrong token for this step; what it computed for them does not count.
        """
        restarted = [] if pending is None else pending.restart(overruled)
        if pending is not None and pending.runs_ahead:
            self._scheduler.commit(pending.put_in_flight(), restarted)
            self._in_flight = pending if any(pending.spans()) else None  # all may have ended in the step before
            return
        changes = [] if pending is None else advance(pending)
        self._scheduler.commit([change.job.request_id for change in changes if change.job.done], restarted)
        for change in changes:
            if change.job.done:
                self._forget(change.job.request_id)
            elif change.parents is not None:
                self._scheduler.fork(change.job.request_id, change.parents)

    def _recover(self, plan: Plan | None, before: Pending | None, cause: BaseException) -> None:
        """Undo a step that failed, and fail the requests that it has lost.

        These are its own, those that wait for a prefix that it was to compute, and those whose tokens of the step
        before could not be read. Without a plan all are lost, for who was to run is not known.
        """
        self.num_failed_steps += 1
        if self._scheduler.in_step:
            self._scheduler.abort()
        lost, prefix_ids = set(self._jobs), None
        if plan is not None:
            ids = set(plan.request_ids[: plan.num_rows].tolist())
            prefix_ids = {-1 - key for key in ids if key < 0} | set(plan.load_ids[: plan.num_loads].tolist())
            waiting = {key for key, job in self._jobs.items() if job.prefix and job.prefix.prefix_id in prefix_ids}
            lost = ids | waiting
        if before is not None:
            lost |= {job.request_id for job in before.jobs if job.in_flight_row is not None}
        for request_id, job in list(self._jobs.items()):
            if request_id in lost and not job.done:
                job.fail(step_error(cause))
            if job.done:
                self._leave(request_id)
        for warm_up in list(self._warm_ups):
            if prefix_ids is None or warm_up.prefix_ids & prefix_ids:
                warm_up.error = step_error(cause)

    @property
    def _has_plans(self) -> bool:
        return self._scheduler.num_unfinished + self._scheduler.num_warming > 0

    def _leave_cancelled(self) -> None:
        while self._cancelled:
            job = self._cancelled.popleft()
            job.done = True
            if job.request_id in self._jobs:
                self._leave(job.request_id)

    def _leave(self, request_id: int) -> None:
        self._scheduler.cancel(request_id)
        self._forget(request_id)

    def _forget(self, request_id: int) -> None:
        self._prefixes.release(self._jobs.pop(request_id).prefix)

    def _source(self, key: int) -> TokenSource:
        """Where a plan's tokens are: a request, or the prefix of that id for ``-1 - prefix_id``."""
        return self._jobs[key] if key >= 0 else self._prefixes.source(-1 - key)
