"""Entries by content, host copies within their budget, and contents that survive every exchange."""

from __future__ import annotations

import time

import pytest
import torch
from cache.page_owner import PageOwner
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from ruprompt_fast.backends.cpu.kv_pool import KVPool
from ruprompt_fast.backends.page_layout import bytes_per_page
from ruprompt_fast.cache import HostPages, PrefixCache, PrefixEntry, prefix_key
from ruprompt_fast.errors import IntegrityError, PromptLengthError, TensorArgumentError
from ruprompt_fast.ops.cpu.kv_pages import PAGE_SIZE
from ruprompt_fast.prompts import KVShape

LAYERS = [KVShape(1, 2, 3, 2), KVShape(1, 1, 2, 4)]
PAGE_BYTES = bytes_per_page(LAYERS, KVPool.page_size, torch.float32)
FIRST_ROW_ID = 1000


class Served:
    """A cache over a pool, and requests that use its prefixes one after another."""

    def __init__(self, num_pages: int = 4, host_pages: int = 2) -> None:
        self.owner = PageOwner(num_pages)
        self.pool = KVPool(LAYERS, num_pages, torch.float32)
        self.cache = PrefixCache(self.owner, self.pool, host_pages * PAGE_BYTES)
        self.computed: list[int] = []

    def acquire(self, content: int, length: int = PAGE_SIZE) -> PrefixEntry:
        rows = torch.full((length, 2), float(content))
        ids = range(FIRST_ROW_ID, FIRST_ROW_ID + length)
        key = prefix_key(b"model", torch.float32, rows, ids, FIRST_ROW_ID)
        return self.cache.acquire(key, length, ids=ids, rows=rows)

    def give(self, content: int, length: int = PAGE_SIZE) -> PrefixEntry:
        """An entry with keys and values of its own."""
        key = prefix_key(b"model", torch.float32, torch.full((length, 1), float(content)), (), FIRST_ROW_ID)
        return self.cache.acquire(key, length, host_pages=self.pages(content, length))

    def pages(self, content: int, length: int) -> HostPages:
        """What the pages of a prefix of that content hold."""
        generator = torch.Generator().manual_seed(content)
        keys = [torch.randn(length, layer.num_key_value_heads, layer.head_dim, generator=generator) for layer in LAYERS]
        values = [
            torch.randn(length, layer.num_key_value_heads, layer.value_width, generator=generator) for layer in LAYERS
        ]
        return self.pool.pack(keys, values)

    def use(self, entry: PrefixEntry, content: int) -> None:
        """Run a request after the prefix: its pages hold its content then."""
        step = self.owner.use(entry.prefix_id)
        self.cache.exchange(step.evicted, step.loaded)
        expected = self.pages(content, entry.length)
        if step.computed:
            self.computed.append(content)
            self.pool.write_pages(self.owner.pages_of_prefix(entry.prefix_id), expected)
        found = self.pool.read_pages(self.owner.pages_of_prefix(entry.prefix_id))
        assert all(map(torch.equal, (*found.keys, *found.values), (*expected.keys, *expected.values)))


@pytest.fixture
def served() -> Served:
    return Served()


def test_equal_content_is_one_entry_under_any_name(served: Served) -> None:
    joker, comedian = served.acquire(1), served.acquire(1)
    assert joker is comedian
    assert joker.references == 2
    assert served.acquire(2) is not joker
    stats = served.cache.stats()
    assert (stats.entries, stats.hits, stats.misses) == (2, 1, 2)
    assert served.owner.lengths == {joker.prefix_id: PAGE_SIZE, served.acquire(2).prefix_id: PAGE_SIZE}


def test_an_entry_knows_what_computes_it(served: Served) -> None:
    entry = served.acquire(7, length=3)
    assert entry.ids == (FIRST_ROW_ID, FIRST_ROW_ID + 1, FIRST_ROW_ID + 2)
    assert entry.rows is not None
    assert entry.rows.tolist() == [[7.0, 7.0]] * 3
    assert served.cache.entry(entry.prefix_id) is entry


def test_the_last_holder_takes_everything_away(served: Served) -> None:
    entry, other = served.acquire(1), served.acquire(2, length=4 * PAGE_SIZE)
    served.use(entry, 1)
    served.use(other, 2)
    assert served.cache.stats().host_bytes == PAGE_BYTES
    served.cache.hold(entry)
    served.cache.release(entry)
    assert served.cache.stats().host_entries == 1
    served.cache.release(entry)
    assert served.cache.stats().host_entries == served.cache.stats().host_bytes == 0
    assert entry.prefix_id not in served.owner.lengths
    for refused in (served.cache.release, served.cache.hold, served.cache.warm_up):
        with pytest.raises(IntegrityError, match=f"prefix {entry.prefix_id} is not in the cache"):
            refused(entry)
    with pytest.raises(IntegrityError):
        served.cache.exchange([(entry.prefix_id, [0])], [])


def test_a_prompt_replaced_under_its_name_never_serves_old_keys(served: Served) -> None:
    prompts = {"joke": served.acquire(1)}
    served.use(prompts["joke"], 1)
    old = prompts["joke"]
    prompts["joke"] = served.acquire(2)
    served.cache.release(old)
    served.use(prompts["joke"], 2)
    assert served.computed == [1, 2]
    back = served.acquire(1)  # the old content again, under a new id
    assert back.prefix_id not in (old.prefix_id, prompts["joke"].prefix_id)
    served.use(back, 1)
    assert served.computed == [1, 2, 1]


def test_a_running_request_keeps_the_prompt_that_it_started_with(served: Served) -> None:
    old = served.acquire(1)
    served.cache.hold(old)  # the request
    served.use(old, 1)
    served.cache.release(old)  # the prompt is removed
    served.use(served.acquire(2, length=4 * PAGE_SIZE), 2)
    served.use(old, 1)
    assert served.computed == [1, 2]
    served.cache.release(old)
    assert served.cache.stats().entries == 1


def test_what_was_evicted_is_loaded_and_not_computed_again(served: Served) -> None:
    entries = [served.acquire(content, length=2 * PAGE_SIZE) for content in range(3)]
    for content in (0, 1, 2, 0, 1):  # two fit the device, one the host
        served.use(entries[content], content)
    assert served.computed == [0, 1, 2]
    stats = served.cache.stats()
    assert (stats.evictions, stats.loads, stats.drops) == (3, 2, 2)


def test_without_room_in_host_memory_it_is_computed_again() -> None:
    served = Served(host_pages=1)
    entries = [served.acquire(content, length=2 * PAGE_SIZE) for content in range(3)]
    for content in (0, 1, 2, 0):
        served.use(entries[content], content)
    assert served.computed == [0, 1, 2, 0]
    stats = served.cache.stats()
    assert (stats.evictions, stats.loads, stats.drops) == (2, 0, 2)


def test_copies_that_are_on_the_device_too_make_room_first() -> None:
    served = Served(num_pages=2, host_pages=2)
    entries = [served.acquire(content) for content in range(4)]
    for content in (0, 1, 2, 3, 0):  # 0 is loaded; the copies of 1 and 2 stay, 0's own goes
        served.use(entries[content], content)
    assert served.owner.host_copies == {entries[1].prefix_id, entries[2].prefix_id}
    assert served.computed == [0, 1, 2, 3]


def test_a_copy_that_stayed_makes_the_next_eviction_free() -> None:
    served = Served(num_pages=1, host_pages=2)
    entries = [served.acquire(content) for content in range(2)]
    for content in (0, 1, 0, 1):
        served.use(entries[content], content)
    copies = [entry.host_pages for entry in entries]
    for content in (0, 1, 0):
        served.use(entries[content], content)
    assert all(entry.host_pages is copy for entry, copy in zip(entries, copies, strict=True))
    assert served.computed == [0, 1]


@pytest.mark.parametrize("host_pages", [0, 1])
def test_a_copy_larger_than_the_budget_is_not_made(host_pages: int) -> None:
    served = Served(num_pages=2, host_pages=host_pages)
    large, other = served.acquire(0, length=PAGE_SIZE + 1), served.acquire(1)
    for _ in range(2):
        served.use(large, 0)
        served.use(other, 1)
    assert served.computed.count(0) == 2
    assert served.cache.stats().host_bytes <= host_pages * PAGE_BYTES
    assert large.host_pages is None


def test_given_keys_and_values_stay() -> None:
    served = Served(num_pages=2, host_pages=0)
    deep = served.give(5, length=PAGE_SIZE + 3)
    assert served.give(5, length=PAGE_SIZE + 3) is deep
    other = served.acquire(1, length=2 * PAGE_SIZE)
    for _ in range(3):
        served.use(deep, 5)
        served.use(other, 1)
    assert 5 not in served.computed
    stats = served.cache.stats()
    assert (stats.host_bytes, stats.pinned_host_bytes, stats.host_entries) == (0, 2 * PAGE_BYTES, 1)
    assert stats.loads == 3
    for _ in range(2):
        served.cache.release(deep)
    assert served.cache.stats().pinned_host_bytes == 0


def test_entries_that_cannot_work_are_refused(served: Served) -> None:
    with pytest.raises(PromptLengthError, match="length=0"):
        served.cache.acquire(b"a", 0)
    with pytest.raises(PromptLengthError, match="length=3, 2 ids"):
        served.cache.acquire(b"a", 3, ids=[1, 2])
    with pytest.raises(PromptLengthError, match="1 ids, keys and values given"):
        served.cache.acquire(b"a", 1, ids=[1], host_pages=served.pages(0, 1))
    with pytest.raises(TensorArgumentError, match="must be 2 pages"):
        served.cache.acquire(b"a", PAGE_SIZE + 1, host_pages=served.pages(0, PAGE_SIZE))
    with pytest.raises(IntegrityError, match="no copy"):
        served.cache.exchange([], [served.acquire(1).prefix_id])
    assert list(served.owner.lengths) == [0]


def test_warming_up_asks_the_scheduler(served: Served) -> None:
    entry = served.acquire(1)
    served.cache.warm_up(entry)
    assert served.owner.warm == [entry.prefix_id]


def test_a_thousand_prompts_register_quickly_and_take_no_pages() -> None:
    served = Served()
    rows, ids = torch.randn(100, 768), range(FIRST_ROW_ID, FIRST_ROW_ID + 100)
    start = time.process_time()
    for index in range(1000):
        rows[50, 50] = index
        served.cache.acquire(prefix_key(b"model", rows.dtype, rows, ids, FIRST_ROW_ID), 100, ids=ids, rows=rows)
    assert time.process_time() - start < 25
    assert served.cache.stats().entries == 1000
    assert len(served.owner.free) == served.pool.num_pages


class CacheMachine(RuleBasedStateMachine):
    """Prompts come and go, requests use them, in any order."""

    @initialize(num_pages=st.integers(3, 6), host_pages=st.integers(0, 6))
    def start(self, num_pages: int, host_pages: int) -> None:
        self.served = Served(num_pages, host_pages)
        self.budget = host_pages * PAGE_BYTES
        self.held: list[tuple[int, PrefixEntry]] = []

    @rule(content=st.integers(0, 7))
    def load_prompt(self, content: int) -> None:
        length = 1 + 13 * (content % 4)  # one to three pages
        entry = self.served.give(content, length) if content >= 6 else self.served.acquire(content, length)
        self.held.append((content, entry))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def hold(self, data: st.DataObject) -> None:
        content, entry = data.draw(st.sampled_from(self.held))
        self.served.cache.hold(entry)
        self.held.append((content, entry))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.served.cache.release(self.held.pop(index)[1])

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        content, entry = data.draw(st.sampled_from(self.held))
        self.served.use(entry, content)

    @invariant()
    def the_books_agree(self) -> None:
        stats, entries = self.served.cache.stats(), {entry.prefix_id: entry for _, entry in self.held}
        copies = {prefix_id: entry for prefix_id, entry in entries.items() if entry.host_pages is not None}
        kept = [entry.host_pages for entry in copies.values() if not entry.pinned]
        given = [entry.host_pages for entry in copies.values() if entry.pinned]
        assert stats.entries == len(entries) == len(self.served.owner.lengths)
        assert stats.host_entries == len(copies)
        assert copies.keys() == self.served.owner.host_copies
        assert stats.host_bytes == sum(pages.num_bytes for pages in kept if pages) <= self.budget
        assert stats.pinned_host_bytes == sum(pages.num_bytes for pages in given if pages)
        assert all(entry.references == sum(other is entry for _, other in self.held) for entry in entries.values())


CacheMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCacheMachine = CacheMachine.TestCase
