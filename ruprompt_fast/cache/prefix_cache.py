"""The prefixes: which there are, who uses them, and their copies in host memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from ruprompt_fast.cache.pages import HostPages, PageIndices, PagePool, num_pages_of
from ruprompt_fast.errors import IntegrityError, PromptLengthError


class PrefixPages(Protocol):
    """What the cache asks of the scheduler, which owns the prefixes' pages on the device."""

    def add_prefix(self, prefix_id: int, length: int, /) -> None:
        """Register a prefix of ``length`` tokens; it takes no pages yet."""

    def remove_prefix(self, prefix_id: int, /) -> None:
        """Forget a prefix; its pages are freed as soon as no request uses them."""

    def warm_prefix(self, prefix_id: int, /) -> None:
        """Compute the KV cache of the prefix as soon as there is room, without a request."""

    def set_host_copy(self, prefix_id: int, present: bool, /) -> None:
        """Say whether a prefix that is not on the device can be loaded instead of computed."""

    def pages_of_prefix(self, prefix_id: int, /) -> npt.NDArray[np.int32]:
        """The prefix's pages on the device, in order."""


@dataclass(eq=False)
class PrefixEntry:
    """One prefix, identified by its content.

    Attributes:
        prefix_id: its id in the scheduler; never used for another prefix.
        key: its content, see :func:`ruprompt_fast.cache.hashing.prefix_key`.
        length: its number of tokens.
        ids: its ids, ``first_row_id + k`` for virtual token k; none if its keys and values were given.
        rows: the virtual tokens [rows, width] of these ids, or None.
        host_pages: the copy in host memory, or None.
        pinned: whether the copy was given with the entry, and stays as long as the entry.
        references: how many prompts and requests hold the entry.
    """

    prefix_id: int
    key: bytes
    length: int
    ids: tuple[int, ...]
    rows: Tensor | None
    host_pages: HostPages | None
    pinned: bool
    references: int = 0


@dataclass(frozen=True)
class PrefixCacheStats:
    """Sizes of a prefix cache, and what happened in it since it was made.

    Attributes:
        entries: prefixes of different content.
        host_entries: prefixes with a copy in host memory, given ones included.
        host_bytes: bytes of the copies that evictions left; at most the budget.
        pinned_host_bytes: bytes of the copies that were given, which no budget limits.
        hits: how often an existing prefix was used.
        misses: how often a new one was made.
        evictions: how often a prefix left the device.
        loads: how often one came back from its host copy.
        drops: how many host copies the budget had no room for.
    """

    entries: int
    host_entries: int
    host_bytes: int
    pinned_host_bytes: int
    hits: int
    misses: int
    evictions: int
    loads: int
    drops: int


class PrefixCache:
    """One entry for every prefix content, however many prompts and requests use it.

    An entry takes no pages until it is computed. When the scheduler evicts it from the device, a copy goes to host
    memory; without a copy it is computed again. Loading keeps the copy, so that the next eviction is free; where room
    is needed, the copies of loaded entries are dropped first, then the least recently used. An entry lives as long as
    somebody holds it: a loaded prompt, or a request that has not finished.

    Not thread-safe: the owner of scheduler and cache makes one call at a time.

    Args:
        scheduler: owns the pages.
        pool: holds their contents.
        host_budget_bytes: for copies that evictions leave in host memory; 0 keeps none.
    """

    def __init__(self, scheduler: PrefixPages, pool: PagePool, host_budget_bytes: int) -> None:
        self._scheduler = scheduler
        self._pool = pool
        self._host_budget_bytes = host_budget_bytes
        self._by_key: dict[bytes, PrefixEntry] = {}
        self._by_id: dict[int, PrefixEntry] = {}
        # Entries whose copy may be dropped, in this order: those on the device, then those evicted the longest ago.
        self._copies: OrderedDict[int, PrefixEntry] = OrderedDict()
        self._next_id = 0
        self._host_bytes = self._pinned_host_bytes = 0
        self._hits = self._misses = self._evictions = self._loads = self._drops = 0

    def acquire(
        self,
        key: bytes,
        length: int,
        *,
        ids: Sequence[int] = (),
        rows: Tensor | None = None,
        host_pages: HostPages | None = None,
    ) -> PrefixEntry:
        """Hold the prefix of that content; give it back with :meth:`release`.

        Args:
            key: the content, see :func:`ruprompt_fast.cache.hashing.prefix_key`.
            length: tokens of the prefix.
            ids: its ids, as many as ``length``.
            rows: the virtual tokens of these ids. Equal content may come from another tensor: use the entry's.
            host_pages: its keys and values, given instead of ``ids``; they are never dropped.

        Raises:
            PromptLengthError: ``length`` is not positive, or not that of the ids.
            TensorArgumentError: the given pages are not of that length, or not of this model.
        """
        entry = self._by_key.get(key)
        if entry is None:
            entry = self._add(
                PrefixEntry(self._next_id, key, length, tuple(ids), rows, host_pages, host_pages is not None)
            )
            self._misses += 1
        else:
            self._hits += 1
        entry.references += 1
        return entry

    def hold(self, entry: PrefixEntry) -> None:
        """Hold an entry once more, for a request with a prompt that holds it.

        Raises:
            IntegrityError: nobody holds it any more.
        """
        self._check(entry)
        entry.references += 1
        self._hits += 1

    def release(self, entry: PrefixEntry) -> None:
        """Release an entry; after its last release it leaves the scheduler and the host memory.

        Raises:
            IntegrityError: nobody holds it any more.
        """
        self._check(entry)
        entry.references -= 1
        if entry.references:
            return
        del self._by_key[entry.key], self._by_id[entry.prefix_id]
        self._scheduler.remove_prefix(entry.prefix_id)
        self._forget_copy(entry)

    def warm_up(self, entry: PrefixEntry) -> None:
        """Have the KV cache of the prefix computed or loaded before a request needs it.

        Raises:
            IntegrityError: nobody holds it any more.
        """
        self._check(entry)
        self._scheduler.warm_prefix(entry.prefix_id)

    def entry(self, prefix_id: int) -> PrefixEntry:
        """The entry of that id.

        Raises:
            IntegrityError: there is none.
        """
        entry = self._by_id.get(prefix_id)
        if entry is None:
            raise IntegrityError(f"prefix {prefix_id} is not in the cache; it was released by all that held it.")
        return entry

    def exchange(self, evicted: Iterable[tuple[int, PageIndices]], loaded: Iterable[int]) -> None:
        """Save and load prefixes as a step's plan says, before its pages are copied or written.

        All evicted prefixes are saved before the loaded ones are written: the plan may give them the same pages. In
        between, the copies may exceed the budget by what the step evicts.

        Args:
            evicted: ids of prefixes that leave the device, each with the pages that still hold it.
            loaded: ids of prefixes to load from their host copies.

        Raises:
            IntegrityError: one of them is not in the cache, or has no copy to load.
        """
        for prefix_id, pages in evicted:
            self._save(self.entry(prefix_id), pages)
        for prefix_id in loaded:
            self._load(self.entry(prefix_id))
        self._shrink()

    def references(self) -> dict[int, int]:
        """How many hold each entry, by its id."""
        return {prefix_id: entry.references for prefix_id, entry in self._by_id.items()}

    def stats(self) -> PrefixCacheStats:
        """The counts. The scheduler counts the prefixes on the device."""
        return PrefixCacheStats(
            entries=len(self._by_key),
            host_entries=sum(entry.host_pages is not None for entry in self._by_id.values()),
            host_bytes=self._host_bytes,
            pinned_host_bytes=self._pinned_host_bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            loads=self._loads,
            drops=self._drops,
        )

    def _add(self, entry: PrefixEntry) -> PrefixEntry:
        self._check_new(entry)
        self._scheduler.add_prefix(entry.prefix_id, entry.length)
        self._next_id += 1
        self._by_key[entry.key] = self._by_id[entry.prefix_id] = entry
        if entry.host_pages is not None:
            self._pinned_host_bytes += entry.host_pages.num_bytes
            self._scheduler.set_host_copy(entry.prefix_id, True)
        return entry

    def _check_new(self, entry: PrefixEntry) -> None:
        expected = 0 if entry.pinned else entry.length
        if entry.length < 1 or len(entry.ids) != expected:
            raise PromptLengthError(
                f"a prefix has at least one token, and an id for each unless its keys and values are given; found "
                f"length={entry.length}, {len(entry.ids)} ids, keys and values {'' if entry.pinned else 'not '}given."
            )
        if entry.host_pages is not None:
            self._pool.check_host_pages(entry.host_pages, num_pages_of(entry.length, self._pool.page_size))

    def _check(self, entry: PrefixEntry) -> None:
        if self._by_id.get(entry.prefix_id) is not entry:
            raise IntegrityError(f"prefix {entry.prefix_id} is not in the cache; it was released by all that held it.")

    def _save(self, entry: PrefixEntry, pages: PageIndices) -> None:
        self._evictions += 1
        if entry.host_pages is None:
            num_bytes = len(pages) * self._pool.page_bytes
            if num_bytes > self._host_budget_bytes:
                self._drops += 1
                return
            entry.host_pages = self._pool.read_pages(pages)
            self._host_bytes += num_bytes
            self._scheduler.set_host_copy(entry.prefix_id, True)
        if not entry.pinned:
            self._copies[entry.prefix_id] = entry
            self._copies.move_to_end(entry.prefix_id)

    def _load(self, entry: PrefixEntry) -> None:
        if entry.host_pages is None:
            raise IntegrityError(f"prefix {entry.prefix_id} has no copy in host memory; it has to be computed.")
        self._pool.write_pages(self._scheduler.pages_of_prefix(entry.prefix_id), entry.host_pages)
        self._loads += 1
        if not entry.pinned:
            self._copies.move_to_end(entry.prefix_id, last=False)

    def _shrink(self) -> None:
        """Drop copies until the rest fits the budget."""
        while self._host_bytes > self._host_budget_bytes:
            entry = next(iter(self._copies.values()))
            self._forget_copy(entry)
            self._scheduler.set_host_copy(entry.prefix_id, False)
            self._drops += 1

    def _forget_copy(self, entry: PrefixEntry) -> None:
        if entry.host_pages is None:
            return
        if entry.pinned:
            self._pinned_host_bytes -= entry.host_pages.num_bytes
        else:
            del self._copies[entry.prefix_id]
            self._host_bytes -= entry.host_pages.num_bytes
        entry.host_pages = None
