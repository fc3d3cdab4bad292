"""The lock that is handed on in order, and the loop that one of the waiting threads runs for all."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import pytest
from engine.engine_cases import wait_for

from ruprompt_fast.engine.loop import FairLock, StepLoop

IN_MAIN_THREAD = threading.current_thread() is threading.main_thread()
needs_signals = pytest.mark.skipif(not IN_MAIN_THREAD, reason="signals reach the main thread only")


def start(*targets: Callable[[], None]) -> list[threading.Thread]:
    threads = [threading.Thread(target=target, daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    return threads


def join(threads: list[threading.Thread]) -> None:
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()


@contextmanager
def interrupted_after(seconds: float) -> Iterator[None]:
    """The main thread gets a KeyboardInterrupt, unless it leaves the block before.

    Not as the first thing in ``__exit__``: Python itself has no ``with`` that is safe from that.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        if frame is None or frame.f_code.co_name not in ("__exit__", "_hand_over"):
            raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


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
    arrived: list[int] = []
    served: list[int] = []

    def work(index: int) -> None:
        arrived.append(index)
        with lock:
            served.append(index)

    with lock:
        threads = []
        for index in range(8):
            threads += start(lambda index=index: work(index))
            wait_for(lambda index=index: len(arrived) > index)
            time.sleep(0.01)  # from its arrival to its place in the line
    join(threads)
    assert served == list(range(8))


def test_who_takes_it_in_a_loop_lets_others_in() -> None:
    lock = FairLock()
    turns = 0
    stop = threading.Event()

    def greedy() -> None:
        nonlocal turns
        while not stop.is_set():
            with lock:
                turns += 1
                time.sleep(0.001)

    threads = start(greedy)
    wait_for(lambda: turns > 3)
    for _ in range(5):
        before = turns
        with lock:
            assert turns <= before + 2
    stop.set()
    join(threads)


def test_an_error_inside_gives_it_back() -> None:
    lock = FairLock()
    with pytest.raises(ValueError, match="inside"), lock:
        raise ValueError("inside")
    with lock:
        pass


def test_who_holds_it() -> None:
    lock = FairLock()
    found: list[bool] = []
    assert not lock.held_here
    with lock:
        assert lock.held_here
        join(start(lambda: found.append(lock.held_here)))
    assert not lock.held_here
    assert found == [False]


@needs_signals
def test_an_interrupt_while_waiting_leaves_the_line() -> None:
    lock = FairLock()
    release, held, served = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            release.wait(20)

    def follow() -> None:
        with lock:
            served.set()

    threads = start(hold)
    held.wait(20)
    with pytest.raises(KeyboardInterrupt), interrupted_after(0.05), lock:
        pass
    threads += start(follow)
    assert not served.is_set()
    release.set()
    join(threads)
    assert served.is_set()
    with lock:
        pass


@needs_signals
def test_interrupts_at_any_moment_lose_no_turn() -> None:
    """Each meets the main thread somewhere on its way into the lock, or inside."""
    lock = FairLock()
    stop = threading.Event()
    rounds = [0, 0]
    chance = random.Random(0)

    def work(index: int) -> None:
        while not stop.is_set():
            with lock:
                rounds[index] += 1
                time.sleep(0.0002)

    threads = start(lambda: work(0), lambda: work(1))
    for _ in range(60):
        try:
            with interrupted_after(chance.uniform(1e-5, 2e-3)):
                with lock:
                    pass
                time.sleep(0.003)
        except KeyboardInterrupt:  # noqa: PERF203  (each round has one)
            pass
    before = list(rounds)
    wait_for(lambda: all(now > then for now, then in zip(rounds, before, strict=True)))
    stop.set()
    join(threads)
    with lock:
        pass


class Counter:
    """Steps that count, each a millisecond long."""

    def __init__(self) -> None:
        self.count = 0
        self.by: list[int] = []
        self.turn = FairLock()
        self.loop = StepLoop(self.step, self.turn)
        self.fail_at: dict[int, BaseException] = {}

    def step(self) -> None:
        assert self.turn.held_here
        time.sleep(0.001)
        self.count += 1
        self.by.append(threading.get_ident())
        if self.count in self.fail_at:
            raise self.fail_at.pop(self.count)

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


def test_threads_share_steps_and_hand_over_the_lead() -> None:
    counter = Counter()
    ends = [5, 40, 20, 60, 60]
    reached: dict[int, int] = {}

    def work(index: int) -> None:
        counter.reach(ends[index])
        reached[index] = counter.count

    join(start(*[lambda index=index: work(index) for index in range(len(ends))]))
    assert counter.count == 60
    assert len(set(counter.by)) >= 2
    assert all(reached[index] >= end for index, end in enumerate(ends))
    changes = sum(a != b for a, b in zip(counter.by, counter.by[1:], strict=False))
    assert changes == len(set(counter.by)) - 1, "who leads goes on until it is done"


def test_what_another_thread_waits_for_ends_its_wait() -> None:
    """A follower returns when its own condition holds, while the leader goes on."""
    counter = Counter()
    threads = start(lambda: counter.reach(200))
    wait_for(lambda: counter.count > 0)
    end = counter.count + 10
    counter.reach(end)
    assert end <= counter.count < 200
    join(threads)


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_leader_that_fails_hands_over(error: BaseException) -> None:
    counter = Counter()
    counter.fail_at[10] = error
    failed: list[BaseException] = []

    def work() -> None:
        try:
            counter.reach(40)
        except BaseException as caught:
            failed.append(caught)

    join(start(*[work] * 4))
    assert failed == [error]
    assert counter.count == 40


def test_a_condition_that_fails_hands_over() -> None:
    counter = Counter()
    threads = start(lambda: counter.reach(30))
    wait_for(lambda: counter.count > 0)

    def broken() -> bool:
        if counter.count > 5:
            raise ValueError("condition")
        return False

    with pytest.raises(ValueError, match="condition"):
        counter.loop.run_until(broken)
    join(threads)
    assert counter.count == 30
    counter.reach(35)
    assert counter.count == 35


@needs_signals
def test_interrupts_of_a_waiting_thread_at_any_moment() -> None:
    """The main thread, leader or follower, is interrupted; the others reach their ends."""
    counter = Counter()
    chance = random.Random(2)
    threads = start(*[lambda: counter.reach(150)] * 3)
    for _ in range(25):
        with pytest.raises(KeyboardInterrupt), interrupted_after(chance.uniform(1e-4, 8e-3)):
            counter.loop.run_until(lambda: False)
        if counter.count >= 150:
            break
    join(threads)
    counter.reach(counter.count + 3)


def test_the_turn_is_free_between_steps() -> None:
    """Who wants to add a request gets the turn behind the step that runs."""
    counter = Counter()
    threads = start(lambda: counter.reach(100))
    wait_for(lambda: counter.count > 0)
    for _ in range(5):
        before = counter.count
        with counter.turn:
            assert counter.count <= before + 2
    assert counter.count < 100
    join(threads)
