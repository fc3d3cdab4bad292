"""A driver of the scheduler that believes nothing: it keeps what every slot of the pool holds, and checks each plan.

What a slot holds is named by the ids up to and including its token, hashed, so a right name in a slot means that the
whole context was right when the token was computed. Nothing here knows how the scheduler decides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ruprompt_fast import _C

PAGE_SIZE = 16
Ids = tuple[int, ...]


def chain_hashes(ids: Sequence[int]) -> np.ndarray:
    """A hash per full page, of everything up to its end."""
    ends = range(PAGE_SIZE, len(ids) + 1, PAGE_SIZE)
    return np.array([hash((-7, *ids[:end])) % 2**64 for end in ends], dtype=np.uint64)


def names(ids: Sequence[int]) -> list[int]:
    """For each token, a name of the token and all before it."""
    result, name = [], 0
    for token in ids:
        name = hash((name, token))
        result.append(name)
    return result


@dataclass
class Request:
    """A request as its caller knows it: all ids of each sequence."""

    tenant: int
    prefix: int
    num_input: int
    max_new: int
    max_sequences: int
    sequences: list[list[int]]

    @property
    def num_new(self) -> int:
        return len(self.sequences[0]) - self.num_input


@dataclass
class Snapshot:
    """A plan as plain values, to compare with another's."""

    rows: list[tuple[int, int, int, int, int]]
    block_tables: list[list[int]]
    write_slots: list[int]
    copies: list[list[int]]
    evicted: list[tuple[int, list[int]]]
    loads: list[int]
    preempted: list[int]


def snapshot(plan: _C.Plan) -> Snapshot:
    rows = range(plan.num_rows)
    starts, evicted_starts = plan.query_starts.tolist(), plan.evicted_page_starts.tolist()
    contexts = plan.context_lens.tolist()
    return Snapshot(
        rows=[
            (
                int(plan.request_ids[i]),
                int(plan.sequence_indices[i]),
                starts[i + 1] - starts[i],
                contexts[i],
                int(plan.samples[i]),
            )
            for i in rows
        ],
        block_tables=[plan.block_tables[i, : -(-contexts[i] // PAGE_SIZE)].tolist() for i in rows],
        write_slots=plan.write_slots[: plan.num_tokens].tolist(),
        copies=plan.copies[: plan.num_copies].tolist(),
        evicted=[
            (int(plan.evicted_ids[i]), plan.evicted_pages[evicted_starts[i] : evicted_starts[i + 1]].tolist())
            for i in range(plan.num_evictions)
        ],
        loads=plan.load_ids[: plan.num_loads].tolist(),
        preempted=plan.preempted_ids[: plan.num_preempted].tolist(),
    )


@dataclass
class Driver:
    """Drives a scheduler and checks it after every call."""

    num_pages: int
    max_sequences: int = 8
    max_model_len: int = 160
    max_step_tokens: int = 64
    max_prefix_pages: int = -1
    save_evicted: bool = True

    requests: dict[int, Request] = field(default_factory=dict)
    prefixes: dict[int, list[int]] = field(default_factory=dict)
    removed: set[int] = field(default_factory=set)
    host: dict[int, list[int]] = field(default_factory=dict)
    slots: dict[int, int] = field(default_factory=dict)
    trace: list[tuple[Any, ...]] = field(default_factory=list)
    plans: list[Snapshot] = field(default_factory=list)
    finished: list[int] = field(default_factory=list)
    next_id: int = 0
    next_token: int = 1000

    def __post_init__(self) -> None:
        self.scheduler = self.new_scheduler()

    def new_scheduler(self) -> _C.Scheduler:
        return _C.Scheduler(
            self.num_pages,
            PAGE_SIZE,
            self.max_sequences,
            self.max_model_len,
            self.max_step_tokens,
            self.max_prefix_pages,
        )

    def call(self, name: str, *arguments: Any) -> Any:
        self.trace.append((name, *arguments))
        return getattr(self.scheduler, name)(*arguments)

    # ---- calls between steps ----

    def add_prefix(self, ids: list[int]) -> int:
        prefix = self.next_id
        self.next_id += 1
        self.prefixes[prefix] = ids
        self.call("add_prefix", prefix, len(ids))
        return prefix

    def remove_prefix(self, prefix: int) -> None:
        self.removed.add(prefix)
        self.call("remove_prefix", prefix)

    def add(self, tenant: int, prefix: int, text: list[int], max_new: int, max_sequences: int = 1) -> int:
        """Raises CapacityError, and then nothing has happened."""
        ids = [*self.prefixes.get(prefix, []), *text]
        request = self.next_id
        self.next_id += 1
        self.call("add", request, tenant, prefix, len(ids), max_new, max_sequences, chain_hashes(ids))
        self.requests[request] = Request(tenant, prefix, len(ids), max_new, max_sequences, [ids])
        return request

    def cancel(self, request: int) -> None:
        assert self.call("cancel", request)
        assert not self.scheduler.cancel(request)
        del self.requests[request]

    def fork(self, request: int, parents: list[int]) -> None:
        self.call("fork", request, parents)
        sequences = self.requests[request].sequences
        self.requests[request].sequences = [list(sequences[parent]) for parent in parents]

    # ---- a step ----

    def step(self, budget: int) -> Snapshot:
        """Plans, checks the plan, and does to the slots what a forward pass would do."""
        plan = snapshot(self.call("step", budget))
        self.plans.append(plan)
        self.check_plan(plan, budget)
        self.evict_and_load(plan)
        sources = {page for page, _ in plan.copies}
        targets = [page for _, page in plan.copies]
        assert len(set(targets)) == len(targets)
        assert not sources & set(targets)
        for source, target in plan.copies:
            self.copy_page(source, target)
        self.write(plan)
        return plan

    def check_plan(self, plan: Snapshot, budget: int) -> None:
        assert len(plan.write_slots) == sum(row[2] for row in plan.rows) <= budget
        assert len(set(plan.write_slots)) == len(plan.write_slots), "two writers"
        assert all(row[2] > 0 for row in plan.rows)
        assert len({row[:2] for row in plan.rows}) == len(plan.rows)
        assert plan.rows or not self.requests, "nothing runs"
        groups = [(self.requests[row[0]].prefix, self.requests[row[0]].tenant) for row in plan.rows if row[0] >= 0]
        for key in (groups, [prefix for prefix, _ in groups]):
            assert len([i for i, group in enumerate(key) if i == 0 or key[i - 1] != group]) == len(set(key))
        # No page that is written to is in the table of another row.
        written = {slot // PAGE_SIZE for slot in plan.write_slots}
        for i, table in enumerate(plan.block_tables):
            own = written & set(table)
            assert not any(own & set(other) for other in plan.block_tables[i + 1 :]), "a written page is shared"

    def evict_and_load(self, plan: Snapshot) -> None:
        for prefix, pages in plan.evicted:
            found = self.content(pages, len(self.prefixes[prefix]))
            assert found == names(self.prefixes[prefix]), "an evicted prefix was not whole"
            if self.save_evicted and prefix not in self.removed:
                self.host[prefix] = found
                self.call("set_host_copy", prefix, True)
        for prefix in plan.loads:
            pages = self.scheduler.pages_of_prefix(prefix).tolist()
            for i, name in enumerate(self.host[prefix]):
                self.slots[pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE] = name

    def copy_page(self, source: int, target: int) -> None:
        for offset in range(PAGE_SIZE):
            self.slots[target * PAGE_SIZE + offset] = self.slots.get(source * PAGE_SIZE + offset, 0)

    def content(self, pages: Sequence[int], length: int) -> list[int]:
        return [self.slots.get(pages[i // PAGE_SIZE] * PAGE_SIZE + i % PAGE_SIZE, 0) for i in range(length)]

    def ids_of(self, request: int, sequence: int) -> list[int]:
        return self.prefixes[-1 - request] if request < 0 else self.requests[request].sequences[sequence]

    def write(self, plan: Snapshot) -> None:
        start = 0
        for (request, sequence, query, context, samples), table in zip(plan.rows, plan.block_tables, strict=True):
            ids = self.ids_of(request, sequence)
            assert samples == (request >= 0 and context == len(ids))
            wanted = names(ids[:context])
            for i, slot in enumerate(plan.write_slots[start : start + query]):
                position = context - query + i
                assert slot == table[position // PAGE_SIZE] * PAGE_SIZE + position % PAGE_SIZE
                self.slots[slot] = wanted[position]
            start += query
        for (request, sequence, _, context, _), table in zip(plan.rows, plan.block_tables, strict=True):
            assert self.content(table, context) == names(self.ids_of(request, sequence)[:context])

    def commit(self, plan: Snapshot, ends: Iterable[int] = (), again: Iterable[int] = ()) -> None:
        """Every sampling sequence gets a token; requests in `ends`, or at their last token, finish.

        Those in `again` that decode get no token, and another one in place of the last.
        """
        sampled: dict[int, int] = {}
        for request, sequence, _, _, samples in plan.rows:
            if samples:
                sampled[request] = sampled.get(request, 0) + 1
                if request in self.requests:
                    self.requests[request].sequences[sequence].append(self.token())
        for request in sampled.keys() & self.requests.keys():
            assert sampled[request] == len(self.requests[request].sequences), "not in lockstep"
        done = [
            request
            for request in sampled
            if request in self.requests
            and (request in ends or self.requests[request].num_new == self.requests[request].max_new)
        ]
        restarted = [id_ for id_ in again if id_ in sampled and id_ in self.requests and self.requests[id_].num_new > 1]
        done = [request for request in done if request not in restarted]
        self.call("commit", done, restarted)
        for request in restarted:
            for ids in self.requests[request].sequences:
                del ids[-2:]
                ids.append(self.token())
        for request in done:
            del self.requests[request]
        self.finished += done
        self.check()

    def token(self) -> int:
        self.next_token += 1
        return self.next_token

    def abort(self) -> None:
        self.call("abort")
        self.check()

    def run(self, budget: int, ends: Iterable[int] = ()) -> Snapshot:
        plan = self.step(budget)
        self.commit(plan, ends)
        return plan

    def drain(self, budget: int, limit: int = 5000) -> int:
        """Steps until nothing is unfinished; the number of steps."""
        for count in range(limit):
            if not self.requests and not self.scheduler.num_warming:
                assert self.scheduler.num_unfinished == 0
                return count
            self.run(budget)
        raise AssertionError(f"{len(self.requests)} requests do not finish")

    def check(self) -> None:
        self.scheduler.check()
        stats = self.scheduler.stats()
        assert self.scheduler.num_unfinished == len(self.requests) == stats["waiting"] + stats["running"]
        if self.max_prefix_pages >= 0:
            assert stats["prefix_pages"] <= self.max_prefix_pages
        if not self.requests:
            assert stats["free_pages"] + stats["cached_pages"] + stats["prefix_pages"] == self.num_pages
            assert stats["sequences"] == 0

    def replay(self) -> list[Snapshot]:
        """The plans that a new scheduler makes of the same calls."""
        scheduler = self.new_scheduler()
        plans = []
        for name, *arguments in self.trace:
            try:
                result = getattr(scheduler, name)(*arguments)
            except ValueError:
                continue  # a refused request, as in the first run
            if name == "step":
                plans.append(snapshot(result))
        return plans
