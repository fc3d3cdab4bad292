"""Pages of the KV cache: copies in host memory, and the interface of the pool on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

PageIndices: TypeAlias = "npt.NDArray[np.integer] | Sequence[int]"
"""Indices of pages in a pool, [n]."""


@dataclass(frozen=True, eq=False)
class HostPages:
    """A copy of some pages in host memory, in the layout of the pool that it was read from.

    Attributes:
        keys: for every layer, [pages, ...].
        values: likewise.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]

    @property
    def num_pages(self) -> int:
        """The number of pages."""
        return self.keys[0].shape[0]

    @property
    def num_bytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for tensor in (*self.keys, *self.values))


class PagePool(Protocol):
    """The pages of one model on its device; only the backend knows their layout.

    Attributes:
        page_size: tokens of a page. A *slot* is ``page * page_size + place in the page``.
        num_pages: pages of every layer.
        page_bytes: bytes of one page of all layers.
    """

    page_size: int
    num_pages: int
    page_bytes: int

    def copy_pages(self, copies: npt.NDArray[np.integer], /) -> None:
        """Copy whole pages in every layer: pairs (source, destination) [n, 2], in order."""

    def read_pages(self, pages: PageIndices, /) -> HostPages:
        """A copy of pages in host memory.

        Raises:
            TensorArgumentError: a page is not in the pool.
        """
        ...

    def write_pages(self, pages: PageIndices, host_pages: HostPages, /) -> None:
        """Write a copy back, into pages that need not be those it was read from.

        Raises:
            TensorArgumentError: a page is not in the pool, or the copy does not fit it.
        """

    def pack(self, keys: Sequence[Tensor], values: Sequence[Tensor], /) -> HostPages:
        """Pages of keys and values that the model did not compute: for every layer [tokens, num_kv_heads, width].

        Raises:
            TensorArgumentError: another number of layers, another shape, or no tokens.
        """
        ...

    def check_host_pages(self, host_pages: HostPages, num_pages: int, /) -> None:
        """Refuse a copy that :meth:`write_pages` could not write to that many pages.

        Raises:
            TensorArgumentError: it has another number of pages, other layers or another dtype.
        """


def num_pages_of(num_tokens: int, page_size: int) -> int:
    """Pages that a sequence of ``num_tokens`` tokens takes."""
    return -(-num_tokens // page_size)
