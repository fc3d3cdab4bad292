"""The lock that is handed on in order, and the loop whose thread runs steps for all who wait."""

from __future__ import annotations

import gc
import math
import os
import threading
from collections.abc import Callable

import pytest
from patience import HANG_SECONDS, wait_for
from patience import join_all as join

from ruprompt_fast.concurrency.fair_lock import FairLock
from ruprompt_fast.engine.loop import StepLoop
from ruprompt_fast.errors import DeadlockError, EngineStepError


def start(*targets: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    return threads


def test_one_at_a_time() -> None:
    lock = FairLock()
    inside, most, total = 0, 0, 0

    def work() -> None:
        nonlocal inside, most, total
        for _ in range(300):
            with lock:
                inside += 1
                most = max(most, inside)
                total += 1
                inside -= 1

    join(start(*[work] * 6))
    assert (most, total) == (1, 1800)


def test_handed_on_in_the_order_of_arrival() -> None:
    lock = FairLock()
    served: list[int] = []

    def work(index: int) -> None:
        with lock:
            served.append(index)

    with lock:
        threads = []
        for index in range(8):
            threads += start(lambda index=index: work(index))
            wait_for(lambda index=index: len(lock._gates) > index)
    join(threads)
    assert served == list(range(8))


def test_who_takes_it_in_a_loop_lets_others_in() -> None:
    """It keeps the engine lock until somebody waits, so who waits is always the next."""
    lock = FairLock()
    served: list[str] = []

    def greedy() -> None:
        for _ in range(5):
            with lock:
                served.append("greedy")
                wait_for(lambda: lock._gates)

    def modest() -> None:
        with lock:
            served.append("modest")

    threads = start(greedy)
    for count in range(1, 6):
        wait_for(lambda count=count: served.count("greedy") == count)
        join(start(modest))
    join(threads)
    assert served == ["greedy", "modest"] * 5


def test_an_error_inside_gives_it_back() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="inside"), lock:
        raise ValueError("inside")
    with lock:
        pass


def test_several_slots() -> None:
    """Three are inside at a time, or nobody would get past the barrier; and never four."""
    lock = FairLock(slots=3)
    inside, most = 0, 0
    counting = threading.Lock()
    three = threading.Barrier(3)

    def work() -> None:
        nonlocal inside, most
        with lock:
            with counting:
                inside += 1
                most = max(most, inside)
            three.wait(HANG_SECONDS)
            with counting:
                inside -= 1

    join(start(*[work] * 12))
    assert most == 3


def test_giving_way_lets_all_who_wait_go_first() -> None:
    lock = FairLock()
    served: list[int] = []

    def work(index: int) -> None:
        with lock:
            served.append(index)

    with lock:
        threads = start(*[lambda index=index: work(index) for index in range(4)])
        wait_for(lambda: len(lock._gates) == 4)
        lock.give_way()
        assert sorted(served) == [0, 1, 2, 3]
    join(threads)


class Counter:
    """Steps that count."""

    def __init__(self) -> None:
        self.count = 0
        self.by: set[int] = set()
        self.lock = FairLock()
        self.loop = StepLoop(self.step, self.lock)
        self.last: float = math.inf
        self.fail_at: dict[int, BaseException] = {}
        self.during: Callable[[], object] = lambda: None

    def step(self) -> bool:
        self.count += 1
        self.by.add(threading.get_ident())
        self.during()
        if self.count in self.fail_at:
            raise self.fail_at.pop(self.count)
        return self.count < self.last

    def reach(self, count: int) -> None:
        self.loop.run_until(lambda: self.count >= count)


def test_nothing_to_wait_for_runs_no_step() -> None:
    counter = Counter()
    counter.loop.run_until(lambda: True)
    assert counter.count == 0


def test_runs_until_it_is_done_and_no_further() -> None:
    counter = Counter()
    counter.reach(5)
    assert counter.count == 5
    counter.reach(7)
    assert counter.count == 7


def test_all_steps_run_on_one_thread_that_is_nobodys() -> None:
    counter = Counter()
    callers: set[int] = set()

    def work(end: int) -> None:
        callers.add(threading.get_ident())
        counter.reach(end)
        assert counter.count >= end

    join(start(*[lambda end=end: work(end) for end in (5, 40, 20, 60, 60)]))
    assert counter.count == 60
    assert len(counter.by) == 1
    assert not counter.by & callers


def test_who_has_what_it_wants_returns_while_others_wait() -> None:
    counter = Counter()
    go_on = threading.Event()
    threads = start(lambda: counter.loop.run_until(go_on.is_set))
    wait_for(lambda: counter.count > 0)
    counter.reach(counter.count + 10)
    assert threads[0].is_alive()
    go_on.set()
    join(threads)


def test_calls_run_between_steps_in_order() -> None:
    counter = Counter()
    go_on = threading.Event()
    threads = start(lambda: counter.loop.run_until(go_on.is_set))
    wait_for(lambda: counter.count > 0)
    found = [counter.loop.call(lambda: (threading.get_ident(), counter.count)) for _ in range(20)]
    go_on.set()
    join(threads)
    assert [count for _, count in found] == sorted(count for _, count in found)
    assert {thread for thread, _ in found} == counter.by


def test_a_call_raises_what_its_work_raises() -> None:
    counter = Counter()

    def work() -> None:
        raise LookupError("work")

    for _ in range(2):
        with pytest.raises(LookupError, match="work"):
            counter.loop.call(work)
    assert counter.loop.call(lambda: 3) == 3


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_a_step_that_raises_leaves_nobody_waiting(error: BaseException) -> None:
    counter = Counter()
    counter.fail_at[10] = error
    failed: list[BaseException] = []

    def work() -> None:
        try:
            counter.reach(40)
        except EngineStepError as caught:
            failed.append(caught)

    join(start(*[work] * 4))
    assert {id(caught.__cause__) for caught in failed} <= {id(error)}
    assert failed
    assert len(set(map(id, failed))) == len(failed), "an error has one traceback, so each caller gets its own"
    counter.reach(45)


def test_a_condition_that_raises_fails_its_caller_only() -> None:
    counter = Counter()
    go_on = threading.Event()
    threads = start(lambda: counter.loop.run_until(go_on.is_set))

    def broken() -> bool:
        raise ValueError("condition")

    with pytest.raises(ValueError, match="condition"):
        counter.loop.run_until(broken)
    counter.reach(counter.count + 3)
    go_on.set()
    join(threads)


def test_the_engine_lock_is_free_between_steps() -> None:
    """Every step goes on until somebody waits for the engine lock, who then has it before the next step."""
    counter = Counter()
    go_on = threading.Event()
    counter.during = lambda: wait_for(lambda: counter.lock._gates or go_on.is_set())
    threads = start(lambda: counter.loop.run_until(go_on.is_set))
    wait_for(lambda: counter.count > 0)
    for step in range(1, 6):
        with counter.lock:
            assert counter.count == step
        wait_for(lambda step=step: counter.count > step)
    go_on.set()
    join(threads)


class Crowd:
    """An audience that writes down what it is told."""

    def __init__(self) -> None:
        self.num_told = 0
        self.errors: list[Exception] = []

    def tell(self) -> None:
        self.num_told += 1

    def fail(self, error: Callable[[], Exception]) -> None:
        self.errors += [error(), error()]


def watched(counter: Counter) -> Crowd:
    crowd = Crowd()

    def begin() -> None:
        counter.loop.audience = crowd

    counter.loop.call(begin)
    return crowd


def test_with_an_audience_steps_run_while_there_is_work_and_no_longer() -> None:
    counter = Counter()
    counter.last = 5
    crowd = watched(counter)
    wait_for(lambda: counter.count == 5)
    assert counter.loop.call(lambda: counter.count) == 5  # and it looks whether this has brought work
    assert counter.loop.call(lambda: counter.count) == 6
    assert counter.loop.call(lambda: counter.count) == 7
    assert crowd.num_told >= 7
    counter.last = 10
    counter.loop.call(lambda: None)
    wait_for(lambda: counter.count == 10)


def test_an_audience_is_told_of_a_step_that_raises() -> None:
    counter = Counter()
    counter.last = 5
    counter.fail_at[3] = RuntimeError("broken")
    crowd = watched(counter)
    wait_for(lambda: crowd.errors)
    first, second = crowd.errors
    assert first is not second
    assert {type(each) for each in crowd.errors} == {EngineStepError}
    counter.loop.call(lambda: None)
    wait_for(lambda: counter.count == 5)


def test_the_thread_ends_with_its_loop() -> None:
    counter = Counter()
    counter.reach(3)
    running = counter.loop._running
    assert running.locked()
    del counter
    gc.collect()
    wait_for(lambda: not running.locked())


def test_a_stale_thread_is_replaced_for_those_who_still_wait() -> None:
    counter = Counter()
    go_on = threading.Event()
    threads = start(lambda: counter.loop.run_until(go_on.is_set))
    wait_for(lambda: counter.count > 0)
    for _ in range(20):
        before = counter.count
        counter.loop.is_stale = True
        wait_for(lambda before=before: counter.count > before and not counter.loop.is_stale)
    go_on.set()
    join(threads)
    counter.reach(counter.count + 3)


def test_a_call_from_inside_a_step_is_refused() -> None:
    counter = Counter()

    def inside() -> None:
        for use in (lambda: counter.loop.call(lambda: 1), lambda: counter.reach(10**9)):
            with pytest.raises(DeadlockError):
                use()

    counter.loop.call(inside)
    assert counter.loop.call(lambda: 5) == 5


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


def test_a_cause_without_a_text_is_named_all_the_same() -> None:
    counter = Counter()
    counter.fail_at[2] = Unspeakable()
    with pytest.raises(EngineStepError, match="Unspeakable"):
        counter.reach(5)


def test_a_forked_process_is_refused() -> None:
    counter = Counter()
    go_on = threading.Event()
    threads = start(lambda: counter.loop.run_until(go_on.is_set))
    wait_for(lambda: counter.count > 0)
    child = os.fork()
    if child == 0:
        try:
            for use in (lambda: counter.loop.call(lambda: 1), lambda: counter.reach(10**9), counter.loop.check_caller):
                with pytest.raises(DeadlockError, match="spawn"):
                    use()
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    go_on.set()
    join(threads)
