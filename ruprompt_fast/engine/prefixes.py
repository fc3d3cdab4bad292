"""From a request to the prefix that it shares with others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ruprompt_fast.cache import PagePool, PrefixCache, PrefixEntry, page_hashes, prefix_key
from ruprompt_fast.errors import CapacityError, IntegrityError
from ruprompt_fast.sampling.history import TokenIds

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ruprompt_fast.requests.inputs import Request
    from ruprompt_fast.requests.registry import LoadedPrompt


class PrefixSource:
    """The tokens of a prefix, as the batch reads them."""

    def __init__(self, entry: PrefixEntry) -> None:
        self._ids = np.asarray(entry.ids, dtype=np.int64)
        self.prompt_rows: Tensor | None = entry.rows

    def ids(self, sequence: int, start: int, stop: int) -> TokenIds:
        """The ids at positions ``start`` to ``stop``."""
        return self._ids[start:stop]

    def id_at(self, sequence: int, position: int) -> int:
        """One id of :meth:`ids`."""
        return int(self._ids[position])


@dataclass(frozen=True)
class Lease:
    """What a request shares with others.

    Attributes:
        entry: the prefix that it begins with, or None.
        tenant: who it is accounted to.
        page_hashes: uint64 [pages], a hash for every whole page of its input.
    """

    entry: PrefixEntry | None
    tenant: int
    page_hashes: npt.NDArray[np.uint64]


@dataclass(eq=False)
class WarmUp:
    """Prefixes that one caller asked for ahead.

    Attributes:
        prefix_ids: which.
        error: what to tell the caller if one of them could not be computed. Requests that use it compute it again.
    """

    prefix_ids: frozenset[int]
    error: Exception | None = None


@dataclass(frozen=True)
class _Known:
    """A prompt that has been used: its prefix if it has one, the seed of its pages' hashes, and its tenant's number."""

    prompt: LoadedPrompt | None
    entry: PrefixEntry | None
    seed: bytes
    tenant: int


class PromptPrefixes:
    """The prefixes of loaded prompts, made at their first use and held until the prompt is replaced or removed.

    Requests of one prompt are one tenant of the scheduler, those without a prompt another.

    Args:
        cache: owns the entries.
        pool: packs the keys and values of deep prompts.
        identity: which model computes them.
        dtype: of keys and values.
        tokenizer: the model's.
        first_row_id: the id of a prompt's row 0 in a request.
    """

    def __init__(
        self,
        cache: PrefixCache,
        pool: PagePool,
        identity: bytes,
        dtype: torch.dtype,
        tokenizer: PreTrainedTokenizerBase,
        first_row_id: int,
    ) -> None:
        self._cache = cache
        self._pool = pool
        self._identity = identity
        self._dtype = dtype
        self._tokenizer = tokenizer
        self._first_row_id = first_row_id
        self._tenants = count(1)
        self._known: dict[int, _Known] = {id(None): _Known(None, None, identity, 0)}
        self._sources: dict[int, PrefixSource] = {}

    def hold(self, request: Request) -> Lease:
        """What the request shares with others; its prefix is held until :meth:`release`."""
        known = self._of(request)
        if known.entry is not None:
            self._cache.hold(known.entry)
        if known.prompt is not None and known.prompt.retired:  # replaced or removed since the request was encoded
            self._forget(known.prompt)
        ids = np.asarray(request.input_ids, dtype=np.int64)
        # The rows' ids depend on the tokenizer's size only, so they mean themselves after the prompt's seed.
        return Lease(known.entry, known.tenant, page_hashes(known.seed, ids, self._pool.page_size))  # type: ignore[arg-type]

    def release(self, entry: PrefixEntry | None) -> None:
        """Give back what :meth:`hold` gave."""
        if entry is None:
            return
        self._cache.release(entry)
        if entry.references == 0:
            self._sources.pop(entry.prefix_id, None)

    def source(self, prefix_id: int) -> PrefixSource:
        """The tokens of a prefix."""
        source = self._sources.get(prefix_id)
        if source is None:
            source = self._sources[prefix_id] = PrefixSource(self._cache.entry(prefix_id))
        return source

    def warm_up(self, prompts: Sequence[LoadedPrompt]) -> WarmUp:
        """Have the prompts' prefixes computed before a request needs them.

        Raises:
            CapacityError: one can never fit; the others are asked for all the same.
        """
        refusals: list[CapacityError] = []
        asked = [self._ask_for(prompt, refusals) for prompt in prompts]
        if refusals:
            raise refusals[0]
        return WarmUp(frozenset(prefix_id for prefix_id in asked if prefix_id is not None))

    def forget_retired(self) -> None:
        """Let go of the prefixes of prompts that were replaced or removed."""
        for known in list(self._known.values()):
            if known.prompt is not None and known.prompt.retired:
                self._forget(known.prompt)

    def check(self, held: Sequence[PrefixEntry | None]) -> None:
        """Compare the entries' holders with who holds them: the known prompts, and these of running requests.

        Raises:
            IntegrityError: an entry is held more or less often, or its tokens outlive it.
        """
        holders = Counter(known.entry.prefix_id for known in self._known.values() if known.entry is not None)
        holders.update(entry.prefix_id for entry in held if entry is not None)
        references = self._cache.references()
        if dict(holders) != references or not self._sources.keys() <= references.keys():
            raise IntegrityError(
                f"prefixes are held {dict(holders)} times by prompts and requests, {references} times by the cache's "
                f"count; tokens are kept of {sorted(self._sources)}."
            )

    def _ask_for(self, prompt: LoadedPrompt, refusals: list[CapacityError]) -> int | None:
        """Have a prompt's prefix computed; its id, or None if it has none or can never fit."""
        fields = dict.fromkeys(prompt.format.fields, "")
        [(ids, prefix_len)] = prompt.encode([fields], self._tokenizer, self._first_row_id)
        try:
            entry = self._learn(prompt, ids[:prefix_len]).entry
            if entry is not None:
                self._cache.warm_up(entry)
        except ValueError as error:
            refusal = CapacityError(f"the prefix of prompt {prompt.name!r} can never be computed: {error}")
            refusal.__cause__ = error
            refusals.append(refusal)
            return None
        return None if entry is None else entry.prefix_id

    def _forget(self, prompt: LoadedPrompt) -> None:
        self.release(self._known.pop(id(prompt)).entry)

    def _of(self, request: Request) -> _Known:
        if request.prompt is None:
            return self._known[id(None)]
        return self._learn(request.prompt, request.input_ids[: request.prefix_len])

    def _learn(self, prompt: LoadedPrompt, prefix_ids: Sequence[int]) -> _Known:
        known = self._known.get(id(prompt))
        if known is None:
            key = prefix_key(
                self._identity, self._dtype, prompt.rows, prefix_ids, self._first_row_id, is_deep=prompt.is_deep
            )
            entry = self._acquire(prompt, key, prefix_ids) if prefix_ids else None
            known = self._known[id(prompt)] = _Known(prompt, entry, key, next(self._tenants))
        return known

    def _acquire(self, prompt: LoadedPrompt, key: bytes, prefix_ids: Sequence[int]) -> PrefixEntry:
        """The entry of a prefix: its ids are computed, the keys and values of a deep prompt are given."""
        if prompt.kv_shape is None:
            return self._cache.acquire(key, len(prefix_ids), ids=prefix_ids, rows=prompt.rows)
        keys, values = zip(*prompt.kv_shape.split(prompt.rows), strict=True)
        return self._cache.acquire(key, len(prefix_ids), host_pages=self._pool.pack(keys, values))
