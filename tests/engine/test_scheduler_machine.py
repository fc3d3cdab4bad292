"""The scheduler under random calls, every plan carried out on a model of the pool and every slot compared."""

from __future__ import annotations

import contextlib

import pytest
from engine.scheduler_model import Driver
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from ruprompt_fast.errors import CapacityError

LENGTHS = st.sampled_from([1, 2, 15, 16, 17, 31, 32, 33, 48, 60])


class Machine(RuleBasedStateMachine):
    @initialize(
        num_pages=st.integers(8, 40),
        max_sequences=st.integers(1, 8),
        max_prefix_pages=st.sampled_from([-1, 3, 6]),
        save_evicted=st.booleans(),
    )
    def start(self, num_pages: int, max_sequences: int, max_prefix_pages: int, save_evicted: bool) -> None:
        self.driver = Driver(num_pages, max_sequences, max_prefix_pages=max_prefix_pages, save_evicted=save_evicted)
        self.plan = None

    @property
    def requests(self) -> list[int]:
        return sorted(self.driver.requests)

    @property
    def prefixes(self) -> list[int]:
        return sorted(self.driver.prefixes.keys() - self.driver.removed)

    @rule(length=LENGTHS)
    def add_prefix(self, length: int) -> None:
        self.driver.add_prefix([2000 + self.driver.next_id, *range(length - 1)])

    @precondition(lambda self: self.prefixes)
    @rule(data=st.data())
    def remove_prefix(self, data: st.DataObject) -> None:
        prefix = data.draw(st.sampled_from(self.prefixes))
        self.driver.remove_prefix(prefix)
        with pytest.raises((ValueError, IndexError)):
            self.driver.scheduler.add(10**6, 0, prefix, 150, 1, 1, [])

    @precondition(lambda self: self.prefixes)
    @rule(data=st.data())
    def warm_prefix(self, data: st.DataObject) -> None:
        with contextlib.suppress(CapacityError):
            self.driver.call("warm_prefix", data.draw(st.sampled_from(self.prefixes)))

    @precondition(lambda self: self.driver.host.keys() - self.driver.removed and self.plan is None)
    @rule(data=st.data())
    def drop_host_copy(self, data: st.DataObject) -> None:
        prefix = data.draw(st.sampled_from(sorted(self.driver.host.keys() - self.driver.removed)))
        del self.driver.host[prefix]
        self.driver.call("set_host_copy", prefix, False)

    @rule(
        data=st.data(),
        tenant=st.integers(0, 3),
        length=st.one_of(st.just(0), LENGTHS),
        text=st.integers(0, 1),
        max_new=st.sampled_from([1, 2, 5, 16, 40]),
        max_sequences=st.integers(1, 4),
    )
    def add(self, data: st.DataObject, tenant: int, length: int, text: int, max_new: int, max_sequences: int) -> None:
        prefix = data.draw(st.sampled_from([-1, *self.prefixes]))
        ids = [text] * length if prefix >= 0 else [text] * max(1, length)
        with contextlib.suppress(CapacityError):
            self.driver.add(tenant, prefix, ids, max_new, max_sequences)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.driver.cancel(data.draw(st.sampled_from(self.requests)))

    @precondition(lambda self: self.requests and self.plan is None)
    @rule(data=st.data())
    def fork(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        known = self.driver.requests[request]
        parent = st.integers(0, len(known.sequences) - 1)
        self.driver.fork(request, data.draw(st.lists(parent, min_size=1, max_size=known.max_sequences)))

    @precondition(lambda self: self.plan is None)
    @rule(budget=st.integers(8, 64))
    def step(self, budget: int) -> None:
        self.plan = self.driver.step(budget)

    @precondition(lambda self: self.plan is not None)
    @rule(data=st.data())
    def commit(self, data: st.DataObject) -> None:
        some = st.sets(st.sampled_from(self.requests), max_size=1) if self.requests else st.just(set())
        self.driver.commit(self.plan, data.draw(some), data.draw(some))
        self.plan = None

    @precondition(lambda self: self.plan is not None)
    @rule()
    def abort(self) -> None:
        self.driver.abort()
        self.plan = None

    @precondition(lambda self: self.plan is None)
    @rule(budget=st.integers(8, 64), count=st.integers(1, 8))
    def run(self, budget: int, count: int) -> None:
        for _ in range(count):
            self.driver.run(budget)

    def teardown(self) -> None:
        if not hasattr(self, "driver"):
            return
        if self.plan is not None:
            self.driver.commit(self.plan)
        self.driver.drain(64)
        for prefix in self.prefixes:
            self.driver.remove_prefix(prefix)
        self.driver.check()
        assert self.driver.scheduler.stats()["prefix_pages"] == 0
        assert self.driver.replay() == self.driver.plans


TestScheduler = Machine.TestCase
TestScheduler.settings = settings(max_examples=100, stateful_step_count=60)
