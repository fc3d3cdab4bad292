"""Who owns the prefixes' pages in these tests: first come, least recently used leaves."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ruprompt_fast.ops.cpu.kv_pages import PAGE_SIZE


@dataclass
class Step:
    """What one request for a prefix makes happen."""

    evicted: list[tuple[int, npt.NDArray[np.int32]]] = field(default_factory=list)
    loaded: list[int] = field(default_factory=list)
    computed: list[int] = field(default_factory=list)


class PageOwner:
    """Pages of prefixes only; one prefix is used at a time."""

    def __init__(self, num_pages: int) -> None:
        self.free = list(range(num_pages))
        self.lengths: dict[int, int] = {}
        self.resident: OrderedDict[int, npt.NDArray[np.int32]] = OrderedDict()
        self.host_copies: set[int] = set()
        self.warm: list[int] = []

    def add_prefix(self, prefix_id: int, length: int, /) -> None:
        assert prefix_id not in self.lengths
        self.lengths[prefix_id] = length

    def remove_prefix(self, prefix_id: int, /) -> None:
        del self.lengths[prefix_id]
        self.free.extend(self.resident.pop(prefix_id, np.zeros(0, np.int32)).tolist())
        self.host_copies.discard(prefix_id)

    def warm_prefix(self, prefix_id: int, /) -> None:
        assert prefix_id in self.lengths
        self.warm.append(prefix_id)

    def set_host_copy(self, prefix_id: int, present: bool, /) -> None:
        assert prefix_id in self.lengths
        (self.host_copies.add if present else self.host_copies.discard)(prefix_id)

    def pages_of_prefix(self, prefix_id: int, /) -> npt.NDArray[np.int32]:
        return self.resident[prefix_id]

    def use(self, prefix_id: int) -> Step:
        """Bring a prefix to the device; others leave as long as there is no room."""
        step = Step()
        if prefix_id in self.resident:
            self.resident.move_to_end(prefix_id)
            return step
        needed = -(-self.lengths[prefix_id] // PAGE_SIZE)
        while len(self.free) < needed:
            other, pages = self.resident.popitem(last=False)
            step.evicted.append((other, pages))
            self.free.extend(pages.tolist())
        self.resident[prefix_id] = np.array([self.free.pop() for _ in range(needed)], dtype=np.int32)
        (step.loaded if prefix_id in self.host_copies else step.computed).append(prefix_id)
        return step
