"""The scheduler's decisions, one at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from engine.scheduler_model import Driver, Snapshot

from ruprompt_fast import _C
from ruprompt_fast.errors import CapacityError

BORDERS = [1, 2, 15, 16, 17, 31, 32, 33]
NO_HASHES = np.zeros(0, dtype=np.uint64)


def ids_in(plan: Snapshot) -> list[int]:
    return [row[0] for row in plan.rows]


def queries(plan: Snapshot) -> dict[int, int]:
    return {row[0]: row[2] for row in plan.rows}


def order_of_first_rows(driver: Driver, budget: int = 64) -> list[int]:
    """Drains; the requests in the order in which they first ran."""
    seen: dict[int, None] = {}
    while driver.requests:
        seen.update(dict.fromkeys(request for request in sorted(ids_in(driver.run(budget))) if request >= 0))
    return list(seen)


@pytest.mark.parametrize("length", BORDERS)
@pytest.mark.parametrize("budget", [1, 7, 64])
def test_a_request_is_computed_in_chunks_and_then_token_by_token(length: int, budget: int) -> None:
    driver = Driver(num_pages=8)
    request = driver.add(0, -1, list(range(length)), max_new=3)
    chunks = -(-length // budget)
    plans = [driver.run(budget) for _ in range(chunks + 2)]
    assert [queries(plan)[request] for plan in plans[chunks:]] == [1, 1]
    assert sum(queries(plan)[request] for plan in plans[:chunks]) == length
    assert not driver.requests


@pytest.mark.parametrize("length", BORDERS)
@pytest.mark.parametrize("text", [0, 1, 15, 16, 17])
def test_a_prefix_is_computed_once_and_shared(length: int, text: int) -> None:
    driver = Driver(num_pages=24)
    prefix = driver.add_prefix(list(range(length)))
    for _ in range(3):
        driver.add(0, prefix, [7] * text, max_new=4)
    first = driver.run(64)
    assert queries(first) == {-1 - prefix: length}
    second = driver.run(64)
    assert len(second.rows) >= 1
    assert all(row[3] - row[2] >= min(length, length + text - 1) for row in second.rows)
    driver.drain(64)
    stats = driver.scheduler.stats()
    assert stats["prefix_misses"] == 1
    assert stats["prefix_hits"] == 2


def test_decoding_comes_before_prefill() -> None:
    driver = Driver(num_pages=20)
    decoding = driver.add(0, -1, [1], max_new=10)
    driver.run(16)
    prefill = driver.add(0, -1, [2] * 50, max_new=2)
    assert queries(driver.run(16)) == {decoding: 1, prefill: 15}


def test_decoding_takes_turns_when_the_budget_is_small() -> None:
    driver = Driver(num_pages=20, max_sequences=6)
    requests = [driver.add(0, -1, [i], max_new=9) for i in range(6)]
    driver.run(64)
    rows = [request for _ in range(3) for request in ids_in(driver.run(2))]
    assert sorted(rows) == requests


def test_rows_of_a_prompt_stand_together() -> None:
    driver = Driver(num_pages=60)
    prefixes = [driver.add_prefix([i] * 5) for i in range(2)]
    for i in range(8):
        driver.add(i % 2, prefixes[i % 2], [i], max_new=5)
    driver.run(64)
    used = [driver.requests[request].prefix for request in ids_in(driver.run(64))]
    assert used == sorted(used)
    assert len(used) == 8


def test_whole_pages_of_equal_text_are_shared() -> None:
    driver = Driver(num_pages=30)
    driver.add(0, -1, [5] * 50, max_new=2)
    driver.drain(64)
    again = driver.add(1, -1, [5] * 50, max_new=2)
    assert queries(driver.run(64)) == {again: 2}
    assert driver.scheduler.stats()["text_page_hits"] == 3


def test_forks_share_pages_until_they_write() -> None:
    driver = Driver(num_pages=30)
    request = driver.add(0, -1, [5] * 20, max_new=20, max_sequences=4)
    driver.run(64)
    driver.fork(request, [0, 0, 0, 0])
    assert driver.scheduler.stats()["free_pages"] == 28
    plan = driver.run(64)
    assert len(plan.copies) == 3
    assert [row[1] for row in plan.rows] == [0, 1, 2, 3]
    driver.fork(request, [2, 2])
    assert driver.scheduler.stats()["sequences"] == 2
    driver.drain(64)


def test_preemption_takes_the_newest_and_it_still_finishes() -> None:
    driver = Driver(num_pages=4)
    old = driver.add(0, -1, [1] * 16, max_new=30)
    new = driver.add(0, -1, [2] * 16, max_new=30)
    plans = [driver.run(64) for _ in range(20)]
    assert [request for plan in plans for request in plan.preempted] == [new]
    driver.drain(64)
    assert driver.finished == [old, new]


def test_several_sequences_are_recomputed_and_go_on_in_lockstep() -> None:
    driver = Driver(num_pages=10)
    driver.add(0, -1, [1] * 30, max_new=60)
    beams = driver.add(1, -1, [2] * 20, max_new=30, max_sequences=3)
    driver.run(64)
    driver.fork(beams, [0, 0, 0])
    driver.drain(7)
    assert driver.scheduler.stats()["preemptions"] > 0


def test_a_prefix_leaves_the_device_and_is_loaded_again() -> None:
    driver = Driver(num_pages=20, max_prefix_pages=2)
    one, two = (driver.add_prefix([i] * 20) for i in range(2))
    for prefix in (one, two, one):
        driver.add(0, prefix, [9], max_new=1)
        driver.drain(64)
    assert [prefix for plan in driver.plans for prefix, _ in plan.evicted] == [one, two]
    loading = next(plan for plan in driver.plans if plan.loads)
    assert loading.loads == [one]
    assert ids_in(loading) == [4]


def test_warming_needs_no_request_and_goes_on_when_rooms_are_taken() -> None:
    driver = Driver(num_pages=4)
    prefixes = [driver.add_prefix([i] * 30) for i in range(3)]
    for prefix in prefixes:
        driver.call("warm_prefix", prefix)
    driver.drain(16)
    assert driver.scheduler.stats()["resident_prefixes"] == 2
    assert driver.scheduler.pages_of_prefix(prefixes[2]).size == 2


@pytest.mark.parametrize("in_step", [False, True])
def test_a_prefix_whose_requests_are_cancelled_is_dropped(in_step: bool) -> None:
    driver = Driver(num_pages=8)
    prefix = driver.add_prefix(list(range(60)))
    request = driver.add(0, prefix, [1], max_new=1)
    plan = driver.step(16)
    if in_step:
        driver.cancel(request)
        driver.commit(plan)
    else:
        driver.commit(plan)
        driver.cancel(request)
    assert driver.scheduler.stats()["free_pages"] == 8


def test_a_failed_step_leaves_prefixes_absent() -> None:
    driver = Driver(num_pages=8)
    prefix = driver.add_prefix(list(range(60)))
    driver.add(0, prefix, [1], max_new=1)
    driver.run(16)
    driver.step(16)
    driver.abort()
    assert driver.scheduler.stats()["free_pages"] == 8
    assert driver.drain(64) == 2


def test_a_removed_prefix_lives_as_long_as_its_requests() -> None:
    driver = Driver(num_pages=8)
    prefix = driver.add_prefix(list(range(20)))
    request = driver.add(0, prefix, [1], max_new=5)
    driver.run(64)
    driver.remove_prefix(prefix)
    with pytest.raises(ValueError, match="is removed"):
        driver.scheduler.add(9, 0, prefix, 30, 1, 1, NO_HASHES)
    driver.run(64)
    driver.cancel(request)
    assert driver.scheduler.stats()["free_pages"] == 8
    with pytest.raises(IndexError, match="not known"):
        driver.scheduler.pages_of_prefix(prefix)


def test_tenants_are_served_alike() -> None:
    driver = Driver(num_pages=40, max_sequences=2)
    for _ in range(30):
        driver.add(0, -1, [1, 2, 3], max_new=8)
    for _ in range(10):
        driver.add(1, -1, [1, 2, 3], max_new=8)
    # A request charges 3 + 2 * 8; while both tenants wait, the counters differ by no more than what may run at a time
    # from each, and by the aging of one wait.
    while {request.tenant for request in driver.requests.values()} == {0, 1}:
        driver.run(64)
        gap = driver.scheduler.tenant_counter(0) - driver.scheduler.tenant_counter(1)
        assert abs(gap) <= 2 * 19 + 8 * 9


def test_a_tenant_earns_no_credit_while_idle() -> None:
    driver = Driver(num_pages=40, max_sequences=1)
    for _ in range(20):
        driver.add(0, -1, [1] * 10, max_new=10)
    for _ in range(150):
        driver.run(64)
    late = [driver.add(1, -1, [1] * 10, max_new=10) for _ in range(5)]
    order = order_of_first_rows(driver)
    assert order.index(late[-1]) >= 5


def test_first_in_first_out_within_a_tenant() -> None:
    driver = Driver(num_pages=8, max_sequences=2)
    requests = [driver.add(0, -1, [i] * (1 + 17 * (i % 3)), max_new=1 + i % 4) for i in range(12)]
    assert order_of_first_rows(driver, 16) == requests


def test_a_large_request_is_not_overtaken_for_ever() -> None:
    driver = Driver(num_pages=8, max_sequences=4)
    for max_new in (3, 6, 9, 12):
        driver.add(0, -1, [1] * 16, max_new=max_new)
    driver.run(64)
    large = driver.add(1, -1, [2] * 120, max_new=2)
    overtook = 0
    while large in driver.requests:
        while len(driver.requests) < 8:
            driver.add(2, -1, [3] * 16, max_new=12)
        overtook += sum(request > large for request in queries(driver.run(64)))
        assert overtook < 16 * 12 + 4 * 12


def test_prefixes_held_for_two_waiting_requests_do_not_block_both() -> None:
    driver = Driver(num_pages=12)
    one, two = (driver.add_prefix([i] * 48) for i in range(2))
    driver.add(0, one, [1] * 110, max_new=2)
    beams = driver.add(1, two, [2], max_new=20, max_sequences=4)
    driver.run(64)
    driver.run(64)
    assert driver.scheduler.stats()["resident_prefixes"] == 2
    driver.fork(beams, [0, 0, 0, 0])
    driver.drain(64)


def test_a_stream_of_new_tenants_starves_nobody() -> None:
    driver = Driver(num_pages=8, max_sequences=1)
    for _ in range(3):
        driver.add(0, -1, [1] * 60, max_new=40)
    tenant = 1
    for _ in range(600):
        if len(driver.requests) < 6:
            driver.add(tenant, -1, [1], max_new=1)
            tenant += 1
        driver.run(64)
    assert driver.finished[:1] == [0]
    assert {1, 2} <= set(driver.finished)


@pytest.mark.parametrize(
    ("arguments", "numbers"),
    [
        ((1, 0, -1, 150, 20, 1), ["150", "20", "160"]),
        ((1, 0, -1, 20, 20, 9), ["9", "8"]),
        ((1, 0, -1, 17, 100, 8), ["57", "20"]),
        ((1, 0, 0, 101, 10, 1), ["7", "6"]),
    ],
)
def test_what_can_never_fit_is_refused_with_the_numbers(arguments: tuple[int, ...], numbers: list[str]) -> None:
    scheduler = _C.Scheduler(20, 16, 8, 160, 64, 6)
    scheduler.add_prefix(0, 100)
    with pytest.raises(CapacityError) as error:
        scheduler.add(*arguments, NO_HASHES)
    assert all(number in str(error.value) for number in numbers)
    assert scheduler.num_unfinished == 0


@pytest.mark.parametrize("sequences", [1, 3])
def test_what_fits_just_so_finishes(sequences: int) -> None:
    for pages in range(1, 30):
        driver = Driver(num_pages=pages)
        prefix = driver.add_prefix(list(range(20)))
        try:
            request = driver.add(0, prefix, [1] * 20, max_new=40, max_sequences=sequences)
        except CapacityError:
            continue
        other = driver.add(1, -1, [2], max_new=15)
        while driver.requests.get(request) and not driver.requests[request].num_new:
            driver.run(16)
        driver.fork(request, [0] * sequences)
        driver.drain(16)
        assert sorted(driver.finished) == [request, other]
        return
    raise AssertionError("refused by every pool")


MISUSES: list[tuple[Callable[[_C.Scheduler], object], type[Exception], str]] = [
    (lambda s: s.commit([]), RuntimeError, "step first"),
    (lambda s: s.abort(), RuntimeError, "step first"),
    (lambda s: (s.step(8), s.step(8)), RuntimeError, "commit or abort"),
    (lambda s: (s.step(8), s.fork(5, [0])), RuntimeError, "commit or abort"),
    (lambda s: s.step(0), ValueError, "found 0"),
    (lambda s: s.step(65), ValueError, "found 65"),
    (lambda s: s.step(3), ValueError, "4 sequences"),
    (lambda s: (s.step(8), s.commit([77])), IndexError, "77"),
    (lambda s: (s.step(8), s.commit([])), ValueError, "must be finished"),
    (lambda s: s.add(5, 0, -1, 4, 1, 1, NO_HASHES), ValueError, "unique"),
    (lambda s: s.add(6, 0, -1, 32, 1, 1, np.zeros(1, np.uint64)), ValueError, "found 1"),
    (lambda s: s.add(6, 0, 3, 4, 1, 1, NO_HASHES), IndexError, "prefix 3"),
    (lambda s: s.add(6, 0, 0, 4, 1, 1, NO_HASHES), ValueError, "prefix"),
    (lambda s: s.add_prefix(0, 4), ValueError, "known already"),
    (lambda s: s.add_prefix(1, 0), ValueError, "found 0"),
    (lambda s: s.fork(5, []), ValueError, "0 parents"),
    (lambda s: s.fork(5, [1]), ValueError, "parent 1"),
    (lambda s: s.fork(6, [0]), IndexError, "request 6"),
    (lambda s: s.warm_prefix(8), IndexError, "prefix 8"),
    (lambda s: s.pages_of(5, 0), IndexError, "index 0"),
]


@pytest.mark.parametrize(("misuse", "error", "message"), MISUSES)
def test_misuse_is_named_and_changes_nothing(
    misuse: Callable[[_C.Scheduler], object], error: type[Exception], message: str
) -> None:
    scheduler = _C.Scheduler(20, 16, 8, 160, 64)
    scheduler.add_prefix(0, 10)
    scheduler.add(5, 0, -1, 4, 1, 4, NO_HASHES)
    with pytest.raises(error, match=message):
        misuse(scheduler)
    scheduler.check()
    assert scheduler.num_unfinished == 1


@pytest.mark.parametrize(
    "arguments",
    [(0, 16, 1, 8, 8), (4, 12, 1, 8, 8), (4, 16, 0, 8, 8), (4, 16, 9, 8, 8), (4, 16, 1, 0, 8), (4, 16, 1, 8, 8, -2)],
)
def test_sizes_that_cannot_work_are_refused(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        _C.Scheduler(*arguments)


def test_the_plan_is_one_object_whose_arrays_outlive_the_scheduler() -> None:
    scheduler = _C.Scheduler(20, 16, 8, 160, 64)
    plan = scheduler.step(8)
    scheduler.commit([])
    assert scheduler.step(8) is plan
    assert plan.write_slots is plan.write_slots
    slots = plan.write_slots
    del scheduler, plan
    assert slots.shape == (64,)
    assert (slots == 0).all()
